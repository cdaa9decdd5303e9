"""What the benchmarks share: a server in a process of its own, and small real models to publish."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

TRIVIUM = Path(sys.executable).with_name("trivium")
READY_S = 60.0


class Server:
    """`trivium serve` on `home`, started, killed and started again; always by its own process id."""

    def __init__(
        self, home: Path, log: Path, *, workers: int = 1, worker: bool = False, **settings: object
    ) -> None:
        """`worker`: with the batch worker that a server keeps as its child."""
        self.home, self.log, self.workers, self.worker = home, log, workers, worker
        self._environment = os.environ | {f"TRIVIUM_{k.upper()}": str(v) for k, v in settings.items()}
        self._environment |= {"TRIVIUM_HOME": str(home), "TRIVIUM_WORKERS": str(workers)}
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.terminate()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return (self.home / "admin.key").read_text().strip()

    def start(self) -> float:
        """Start it, wait until `/readyz` is 200; seconds that took."""
        argv = [TRIVIUM, "serve", "--port", str(self.port), "--workers", str(self.workers)]
        argv += [] if self.worker else ["--no-worker"]
        self.started = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, env=self._environment, stdout=log, stderr=log)
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() - self.started > READY_S:
                raise RuntimeError(f"the server did not get ready:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.005)
        return time.monotonic() - self.started

    def _is_ready(self) -> bool:
        try:
            return self.call("GET", "/readyz", key="", timeout_s=5.0)[0] == 200
        except OSError:
            return False

    def descendants(self) -> list[psutil.Process]:
        assert self.process is not None
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill(self, within_s: float = 10.0) -> list[psutil.Process]:
        """SIGKILL, to the server alone. The children that still run after `within_s`: one that has ended is
        for the machine's first process to collect, which has its own time."""
        children = self.descendants()
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        left = psutil.wait_procs(children, timeout=within_s)[1]
        return [p for p in left if _runs(p)]

    def terminate(self, within_s: float = 60.0) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

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
        """One request on a connection of its own: status and body. Raises `OSError` when nobody answers."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=timeout_s)
        sent = {"Authorization": f"Bearer {self.key if key is None else key}", "Connection": "close"}
        try:
            connection.request(method, path, body, sent | (headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:  # the server died in the middle of its answer
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()

    def ask(self, method: str, path: str, record: object = None) -> Any:
        """The JSON answer; anything but success is an error."""
        body = None if record is None else json.dumps(record).encode()
        status, answer = self.call(method, path, body, headers={"Content-Type": "application/json"})
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {answer.decode()[:500]}")
        return json.loads(answer) if answer else None

    def put(self, content: bytes, sha256: str) -> None:
        status, answer = self.call("PUT", f"/v1/artifacts/{sha256}", content)
        if status not in (200, 201):
            raise RuntimeError(f"PUT: {status} {answer.decode()[:500]}")

    def publish(self, name: str, model: object, example: bytes, **more: object) -> dict[str, Any]:
        """Publish and wait for the build; the version's record."""
        uploaded = {}
        for part, content in (("artifact", pickled(model)), ("example", example)):
            uploaded[part] = sha256_of(content)
            self.put(content, uploaded[part])
        body = {
            "artifact": uploaded["artifact"],
            "format": "sklearn-joblib",
            "example": {"artifact": uploaded["example"], "media_type": "text/csv"},
            **more,
        }
        record = self.ask("POST", f"/v1/models/{name}/versions", body)
        while record["state"] == "building":
            time.sleep(0.05)
            record = self.ask("GET", f"/v1/models/{name}/versions/{record['version']}")
        if record["state"] != "ready":
            raise RuntimeError(f"the build was rejected: {record['report']}")
        found: dict[str, Any] = record
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def sha256_of(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def pickled(model: object) -> bytes:
    import joblib

    out = io.BytesIO()
    joblib.dump(model, out)
    return out.getvalue()


def forest(trees: int = 100, depth: int | None = None) -> tuple[Any, bytes, list[dict[str, float]]]:
    """A random forest on the breast-cancer data, an example of it in CSV, and rows to ask about."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import RandomForestClassifier

    data = load_breast_cancer(as_frame=True)
    model = RandomForestClassifier(trees, max_depth=depth, random_state=0).fit(data.data, data.target)
    return model, data.data.head(50).to_csv(index=False).encode(), data.data.to_dict("records")


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of the process and its children."""
    times = [p.cpu_times() for p in [process, *process.children(recursive=True)]]
    return float(sum(t.user + t.system for t in times))


def machine() -> str:
    import platform

    return f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
