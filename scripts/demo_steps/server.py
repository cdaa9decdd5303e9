"""A server of the demo's own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo_steps import FILES, HOME, Failed, say
from demo_steps.signals import held
from service.client import BuilderBroken, Client, ServerRefused, Unreachable

START_S = 60.0


def free_port(wanted: int) -> int:
    """`wanted`, or another one when something else listens there."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            if port != wanted:
                say("Port", f"{wanted} is in use, so this demo takes {probe.getsockname()[1]}")
            return int(probe.getsockname()[1])
    raise SystemExit("no port is free on 127.0.0.1")


@contextmanager
def serving(port: int) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """A `trivium serve` child that is ready, and a client of it; stopped at the end.

    Raises `Failed` when what is waited for inside is never built.
    """
    log = FILES / "server.log"
    trivium = Path(sys.executable).with_name("trivium")
    started = time.perf_counter()
    order = [str(trivium), "serve", "--host", "127.0.0.1", "--port", str(port)]
    server: subprocess.Popen[bytes] | None = None
    try:
        with held(), log.open("wb") as out:
            server = subprocess.Popen(order, env=_environment(), stdout=out, stderr=subprocess.STDOUT)
        url = f"http://127.0.0.1:{port}"
        await_ready(url, server, log)
        say("Serving", f"{url}, ready after {time.perf_counter() - started:.1f} s; its log is {log}")
        key_file = HOME / "admin.key"
        key = key_file.read_text().strip() if key_file.exists() else os.environ.get("TRIVIUM_API_KEY")
        with Client(url, key) as client:
            yield client, server
    except BuilderBroken as broken:
        raise Failed(f"{broken}; its log is {log}") from broken
    finally:
        with held():
            if server is not None:
                server.terminate()
                server.wait()


def _environment() -> dict[str, str]:
    """Ours, and that jobs may read the demo's files where they are."""
    roots = [os.environ.get("TRIVIUM_BATCH_ROOTS"), str(FILES.resolve())]
    return os.environ | {"TRIVIUM_BATCH_ROOTS": ":".join(root for root in roots if root)}


def await_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    given_up = time.monotonic() + START_S
    with Client(url, None, timeout_s=5.0) as client:
        while server.poll() is None and time.monotonic() < given_up:
            try:
                client.call("GET", "/readyz")
            except (Unreachable, ServerRefused):
                time.sleep(0.05)
            else:
                return
    tail = log.read_text(errors="replace").splitlines()[-20:]
    raise SystemExit("\n".join(["the server did not get ready; its log ends with", *tail]))
