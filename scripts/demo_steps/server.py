"""The server that the demo starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo_steps import FILES, HOME, Failed, print_step
from demo_steps.signals import check_stopped, deferred_signals
from service.client import BuilderBroken, Client, ServerRefused, Unreachable

START_S = 60.0
"""Longest time for the server's start."""


def free_port(preferred: int) -> int:
    """Return `preferred`, or another free port when it is in use."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            if port != preferred:
                print_step("Port", f"{preferred} is in use; using {probe.getsockname()[1]} instead")
            return int(probe.getsockname()[1])
    raise SystemExit("no port is free on 127.0.0.1")


@contextmanager
def serving(port: int) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """Start `trivium serve` and yield a client and the process; the server is stopped at the end.

    Raises `Failed` when a build that is waited for inside the block never starts.
    """
    log = FILES / "server.log"
    trivium = Path(sys.executable).with_name("trivium")
    start = time.perf_counter()
    command = [str(trivium), "serve", "--host", "127.0.0.1", "--port", str(port)]
    server: subprocess.Popen[bytes] | None = None
    try:
        with deferred_signals(), log.open("wb") as out:
            server = subprocess.Popen(command, env=_environment(), stdout=out, stderr=subprocess.STDOUT)
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, server, log)
        check_stopped()
        print_step("Serving", f"{url}, ready after {time.perf_counter() - start:.1f} s; log: {log}")
        key_file = HOME / "admin.key"
        key = key_file.read_text().strip() if key_file.exists() else os.environ.get("TRIVIUM_API_KEY")
        with Client(url, key) as client:
            yield client, server
    except BuilderBroken as broken:
        raise Failed(f"{broken}; log: {log}") from broken
    finally:
        with deferred_signals():
            if server is not None:
                server.terminate()
                server.wait()


def _environment() -> dict[str, str]:
    """This process's environment, with the demo's files as a further batch root: jobs read them in place."""
    roots = [os.environ.get("TRIVIUM_BATCH_ROOTS"), str(FILES.resolve())]
    return os.environ | {"TRIVIUM_BATCH_ROOTS": ":".join(root for root in roots if root)}


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    with Client(url, None, timeout_s=5.0) as client:
        while server.poll() is None and time.monotonic() < deadline:
            check_stopped()
            try:
                client.call("GET", "/readyz")
            except (Unreachable, ServerRefused):
                time.sleep(0.05)
            else:
                return
    tail = log.read_text(errors="replace").splitlines()[-20:]
    raise SystemExit("\n".join([f"the server did not start; the end of {log}:", *tail]))
