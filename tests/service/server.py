"""A real server: `trivium serve`'s own entry in a process of its own, on a port of the kernel's choice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

READY_S = 60.0
MAIN = """
import sys
from service.config import Settings
from service.serve import serve
sys.exit(serve(Settings(port=0), workers={workers}, worker=False))
"""


class Server(NamedTuple):
    url: str
    home: Path
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def key(self) -> str:
        return (self.home / "admin.key").read_text().strip()

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def lines(self) -> list[dict[str, Any]]:
        whole = self.log.read_text().rpartition("\n")[0]  # the last line may be on its way
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


@contextmanager
def serving(home: Path, workers: int = 1, main: str = MAIN, **settings: object) -> Iterator[Server]:
    """A server that is ready. It must end by itself, with exit code 0, when it is told to."""
    environment = os.environ | {f"TRIVIUM_{k.upper()}": str(v) for k, v in settings.items()}
    environment["TRIVIUM_HOME"] = str(home)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            argv = [sys.executable, "-c", main.format(workers=workers)]
            process = subprocess.Popen(argv, env=environment, stderr=out)
        try:
            server = Server(_url(log, process), home, process, log)
            _wait_until_ready(server)
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
            code = process.wait(60)
        assert code == 0, log.read_text()


def _url(log: Path, process: subprocess.Popen[bytes]) -> str:
    for _ in _patience(process):
        for line in log.read_text().splitlines():
            if '"serving"' in line:
                found: str = json.loads(line)["url"]
                return found
    raise AssertionError(log.read_text())


def _wait_until_ready(server: Server) -> None:
    for _ in _patience(server.process):
        try:
            if httpx.get(f"{server.url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            continue
    raise AssertionError(server.log.read_text())


def _patience(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Look again and again while the process lives, for as long as a slow machine may need."""
    pause = threading.Event()
    for _ in range(int(READY_S / 0.02)):
        if process.poll() is not None:
            return
        yield
        pause.wait(0.02)
