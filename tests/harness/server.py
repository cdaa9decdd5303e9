"""`trivium serve` in a child process, for tests and benchmarks."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from tests.harness.models import pickle_model, sha256_of

TRIVIUM = Path(sys.executable).with_name("trivium")
READY_S = 60.0
"""A server that is not ready after this time fails the test."""


class Server:
    """A server on the data directory `home`: started, stopped, killed and started again.

    The first start takes a free port, restarts reuse it. Output is appended to `log`. Signals are sent to the
    server's own process id only.
    """

    def __init__(
        self,
        home: Path,
        log: Path,
        *,
        workers: int = 1,
        worker: bool = False,
        port: int = 0,
        main: str | None = None,
        environment: Mapping[str, str] | None = None,
        **settings: object,
    ) -> None:
        """`workers` is the number of web processes; `worker` adds the batch worker child.

        `main` is Python code to run instead of the command, with the field `{workers}`. `settings` become
        `TRIVIUM_...` variables.
        """
        self.home, self.log, self.port = home, log, port
        self._workers, self._worker, self._main = workers, worker, main
        self._environment = os.environ | {f"TRIVIUM_{k.upper()}": str(v) for k, v in settings.items()}
        self._environment |= {"TRIVIUM_HOME": str(home), **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.started = 0.0

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.terminate()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server was not started"
        return self._process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        """The admin key."""
        return (self.home / "admin.key").read_text().strip()

    def start(self) -> float:
        """Start the server, wait until `/readyz` returns 200, and return the seconds that took."""
        self.launch()
        while not self._is_ready():
            self._require_starting()
            time.sleep(0.005)
        return time.monotonic() - self.started

    def launch(self) -> None:
        """Start the process and wait until it listens."""
        self.started = time.monotonic()
        with self.log.open("ab") as log:
            offset = log.tell()
            self._process = subprocess.Popen(self._command(), env=self._environment, stdout=log, stderr=log)
        while self.port == 0:
            self._require_starting()
            self.port = _logged_port(self.log, offset)
            time.sleep(0.005)

    def _command(self) -> list[str]:
        if self._main is not None:
            return [sys.executable, "-c", self._main.format(workers=self._workers)]
        command = [str(TRIVIUM), "serve", "--port", str(self.port), "--workers", str(self._workers)]
        return command if self._worker else [*command, "--no-worker"]

    def _require_starting(self) -> None:
        if self.process.poll() is not None or time.monotonic() - self.started > READY_S:
            raise RuntimeError(f"the server did not get ready:\n{self.log.read_text()[-4000:]}")

    def _is_ready(self) -> bool:
        try:
            return self.call("GET", "/readyz", key="", timeout_s=5.0)[0] == 200
        except OSError:
            return False

    def descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill(self, timeout_s: float = 10.0) -> list[psutil.Process]:
        """Send SIGKILL to the server alone; return its descendants that still run after `timeout_s`.

        Zombies do not count: the machine's init process collects them in its own time.
        """
        descendants = self.descendants()
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(descendants, timeout=timeout_s)
        return [p for p in alive if _is_running(p)]

    def terminate(self, timeout_s: float = 60.0) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def log_records(self) -> list[dict[str, Any]]:
        """Return the JSON records of the log; the last line may be incomplete and is left out."""
        complete = self.log.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in complete.splitlines() if line.startswith("{")]

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> tuple[int, bytes]:
        """Send one request over a new connection; return status and body.

        Raises `OSError` when the connection fails or breaks.
        """
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=timeout_s)
        own_headers = {"Authorization": f"Bearer {self.key if key is None else key}", "Connection": "close"}
        try:
            connection.request(method, path, body, own_headers | (headers or {}))
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:  # the server died while it sent the response
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()

    def call_json(self, method: str, path: str, record: object = None) -> Any:
        """Send and return JSON. Raises `RuntimeError` unless the status is 2xx."""
        body = None if record is None else json.dumps(record).encode()
        status, content = self.call(method, path, body, headers={"Content-Type": "application/json"})
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {content.decode()[:500]}")
        return json.loads(content) if content else None

    def upload(self, content: bytes) -> str:
        """Upload an artifact and return its sha256."""
        sha256 = sha256_of(content)
        status, answer = self.call("PUT", f"/v1/artifacts/{sha256}", content)
        if status not in (200, 201):
            raise RuntimeError(f"PUT: {status} {answer.decode()[:500]}")
        return sha256

    def publish(self, name: str, model: object, example: bytes, **fields: object) -> dict[str, Any]:
        """Publish a model, wait for its build, and return the version's record.

        `example` is CSV; `fields` are further fields of the request.
        """
        body = {
            "artifact": self.upload(pickle_model(model)),
            "format": "sklearn-joblib",
            "example": {"artifact": self.upload(example), "media_type": "text/csv"},
            **fields,
        }
        record: dict[str, Any] = self.call_json("POST", f"/v1/models/{name}/versions", body)
        while record["state"] == "building":
            time.sleep(0.05)
            record = self.call_json("GET", f"/v1/models/{name}/versions/{record['version']}")
        if record["state"] != "ready":
            raise RuntimeError(f"the build was rejected: {record['report']}")
        return record


@contextmanager
def serving(home: Path, workers: int = 1, main: str | None = None, **settings: object) -> Iterator[Server]:
    """A server that is ready. At the end it gets SIGTERM and must exit with code 0.

    `main` is Python code that serves with `Settings(port=0)`, in place of `trivium serve`.
    """
    with tempfile.TemporaryDirectory() as folder:
        server = Server(home, Path(folder) / "log", workers=workers, main=main, **settings)
        with server:
            server.start()
            yield server
            exit_code = server.process.wait(60) if server.process.poll() is not None else server.terminate()
        assert exit_code == 0, server.log.read_text()


def _logged_port(log: Path, offset: int) -> int:
    """The port in the log record "serving", or 0 when the server does not listen yet."""
    with log.open("rb") as file:
        file.seek(offset)
        lines = file.read().rpartition(b"\n")[0].splitlines()
    for line in lines:
        if b'"serving"' in line:
            return int(json.loads(line)["url"].rpartition(":")[2])
    return 0


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
