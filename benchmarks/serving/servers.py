"""The table of servers, and one running server."""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.serving import environments, protocols
from benchmarks.serving.machine import ProcessTree, on_core, stop
from benchmarks.serving.models import Model
from benchmarks.serving.protocols import Request
from tests.harness.machine import free_port
from tests.harness.server import Server

START_S = 120.0
"""A server that does not answer after this time has failed."""
REFUSED_S = 30.0
"""A server that refuses the first row for this time has failed."""
QUIET_S, SETTLE_S = 4.0, 60.0
"""This server loads compiled code in the background. It is measured after `QUIET_S` without work, and at the
latest after `SETTLE_S`."""
TOLERANCE = 1e-6
"""The largest difference of a probability from scikit-learn's."""
ALONE = 8
"""Rows whose answers are also checked without other requests at the same time."""
MAX_BATCH = 32
"""The largest batch of servers that wait until it is full: the headline's concurrency, their best case."""
QUIET = {
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OTEL_SDK_DISABLED": "true",
    # Whatever else a peer would send to the internet fails at once.
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost,0.0.0.0",
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class ServerFailed(Exception):
    """A server that did not start, or did not answer correctly; the text says why."""


@dataclass(frozen=True)
class Launch:
    """What a command is made from. `folder` is the server's own, with files for all servers beside it."""

    python: Path
    port: int
    model: Model
    folder: Path
    batching: bool | None

    @property
    def model_folder(self) -> Path:
        return self.folder.parent / "model"

    @property
    def answer(self) -> Path:
        """The bytes of a typical answer, for servers with a constant one."""
        return self.folder.parent / "answer.json"


@dataclass(frozen=True)
class ServerSpec:
    """One server of the comparison.

    `environment` names the lock in benchmarks/peers; without one, the server runs in this environment.
    """

    name: str
    title: str
    package: str
    role: Literal["limit", "own", "own variant", "by hand", "peer"]
    command: Callable[[Launch], list[str]] = lambda launch: []
    request: Callable[[Model], Request] = protocols.lists
    environment: str | None = None
    batching: bool | None = None
    variables: dict[str, str] = field(default_factory=dict, hash=False)
    numbers_only: bool = False
    configure: Callable[[Server, Model], None] | None = None
    """What a variant of this server switches on."""
    counters: tuple[str, ...] = ()
    """Metrics that show whether the variant did its work."""

    def version(self) -> str:
        if self.environment:
            return environments.locked_version(self.environment, self.package)
        return importlib.metadata.version(self.package)

    def python(self) -> Path:
        return environments.python_of(self.environment) if self.environment else Path(sys.executable)


def _script(name: str, *arguments: str) -> Callable[[Launch], list[str]]:
    return lambda launch: [
        str(launch.python),
        str(environments.PEERS / name),
        str(launch.port),
        *(argument.format(launch=launch) for argument in arguments),
    ]


def _tool(name: str, *arguments: str) -> Callable[[Launch], list[str]]:
    """A command in the environment of the peer, with fields of the launch in its arguments."""
    return lambda launch: [
        str(launch.python.with_name(name)),
        *(argument.format(launch=launch, peers=environments.PEERS) for argument in arguments),
    ]


def _record_predictions(server: Server, model: Model) -> None:
    server.call_json("PUT", f"/v1/models/{model.name}/prediction-log", {"sample": 1.0})


def _let_a_shadow_answer(server: Server, model: Model) -> None:
    """Publish the model once more, as the shadow of the first version."""
    version = server.publish(model.name, model.fitted, model.example)
    path = f"/v1/models/{model.name}/aliases/champion/traffic"
    server.call_json("PUT", path, {"shadow": version["version"]})


def _mlserver(launch: Launch) -> list[str]:
    batching = {"max_batch_size": MAX_BATCH, "max_batch_time": 0.002} if launch.batching else {}
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": launch.port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": 0,  # its worker processes fail to start with uvloop 0.23
    }
    own = {
        "name": launch.model.name,
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": str(launch.model_folder / "model.joblib")},
    }
    (launch.folder / "settings.json").write_text(json.dumps(settings))
    (launch.folder / "model-settings.json").write_text(
        json.dumps(own | (batching if launch.batching else {}))
    )
    return [str(launch.python.with_name("mlserver")), "start", str(launch.folder)]


def _mlflow(launch: Launch) -> list[str]:
    saved = launch.folder / "saved"
    if not saved.exists():
        done = subprocess.run(
            [launch.python, environments.PEERS / "mlflow_save.py", saved],
            env=_environment(SPECS["mlflow"], launch.folder),
            capture_output=True,
            text=True,
            timeout=START_S,
        )
        if done.returncode:
            raise ServerFailed(f"cannot save the model: {done.stderr.strip().splitlines()[-1][:300]}")
    arguments = ["--host", "127.0.0.1", "--port", str(launch.port), "--env-manager", "local"]
    mlflow = str(launch.python.with_name("mlflow"))
    return [mlflow, "models", "serve", "--model-uri", str(saved), *arguments, "--workers", "1"]


_GRANIAN = ["--host", "127.0.0.1", "--port", "{launch.port}", "--workers", "1", "--no-ws", "--loop", "uvloop"]
_GRANIAN += ["--http", "1", "--no-access-log", "--working-dir", "{peers}"]
_GUNICORN = ["--chdir", "{peers}", "--bind", "127.0.0.1:{launch.port}", "--workers", "1", "--timeout", "0"]
_UVICORN = ["--app-dir", "{peers}", "--host", "127.0.0.1", "--port", "{launch.port}", "--no-access-log"]
_BENTOML = ["serve", "bentoml_app:Classifier", "--working-dir", "{peers}", "--host", "127.0.0.1"]
_BENTOML += ["--port", "{launch.port}"]

ALL = [
    ServerSpec(
        "bare",
        "bare uvicorn, constant answer",
        "uvicorn",
        "limit",
        _script("bare.py", "{launch.answer}", "read"),
    ),
    ServerSpec(
        "bare-unread",
        "bare uvicorn, body not read",
        "uvicorn",
        "limit",
        _script("bare.py", "{launch.answer}", "unread"),
    ),
    ServerSpec(
        "granian-rsgi",
        "bare Granian (RSGI), constant answer",
        "granian",
        "limit",
        _tool("granian", *_GRANIAN, "--interface", "rsgi", "granian_app:rsgi"),
        environment="granian",
    ),
    ServerSpec(
        "granian-asgi",
        "bare Granian (ASGI), constant answer",
        "granian",
        "limit",
        _tool("granian", *_GRANIAN, "--interface", "asgi", "granian_app:asgi"),
        environment="granian",
    ),
    ServerSpec("trivium", "Trivium", "trivium", "own"),
    ServerSpec(
        "trivium-log",
        "Trivium, every prediction in the log",
        "trivium",
        "own variant",
        configure=_record_predictions,
        counters=("trivium_prediction_log_rows_total", "trivium_prediction_log_dropped_rows_total"),
    ),
    ServerSpec(
        "trivium-shadow",
        "Trivium, with a shadow version",
        "trivium",
        "own variant",
        configure=_let_a_shadow_answer,
        counters=("trivium_shadow_rows_total",),
    ),
    ServerSpec(
        "asgi-onnx",
        "ASGI + ONNX, by hand",
        "onnxruntime",
        "by hand",
        _script(
            "asgi_onnx.py",
            "{launch.model_folder}/model.onnx",
            "{launch.model_folder}/names.json",
        ),
        protocols.records,
        numbers_only=True,
    ),
    ServerSpec(
        "fastapi-onnx",
        "FastAPI + ONNX, by hand",
        "fastapi",
        "by hand",
        _script(
            "fastapi_onnx.py",
            "{launch.model_folder}/model.onnx",
            "{launch.model_folder}/names.json",
        ),
        protocols.records,
        numbers_only=True,
    ),
    ServerSpec(
        "flask",
        "Flask + gunicorn",
        "flask",
        "peer",
        _tool("gunicorn", *_GUNICORN, "flask_app:app"),
        environment="flask",
    ),
    ServerSpec(
        "fastapi",
        "FastAPI + joblib",
        "fastapi",
        "peer",
        _tool("uvicorn", *_UVICORN, "fastapi_app:app"),
        environment="fastapi",
    ),
    ServerSpec(
        "mlserver", "MLServer", "mlserver", "peer", _mlserver, protocols.mlserver, "mlserver", batching=False
    ),
    ServerSpec(
        "mlserver-batching",
        "MLServer, batching",
        "mlserver",
        "peer",
        _mlserver,
        protocols.mlserver,
        "mlserver",
        batching=True,
    ),
    ServerSpec(
        "bentoml",
        "BentoML",
        "bentoml",
        "peer",
        _tool("bentoml", *_BENTOML),
        environment="bentoml",
        batching=False,
    ),
    ServerSpec(
        "bentoml-batching",
        "BentoML, batching",
        "bentoml",
        "peer",
        _tool("bentoml", *_BENTOML),
        environment="bentoml",
        batching=True,
        variables={"BENCH_BATCHING": "1", "BENCH_MAX_BATCH": "100"},
    ),
    ServerSpec(
        "litserve",
        "LitServe",
        "litserve",
        "peer",
        _script("litserve_app.py"),
        environment="litserve",
        batching=False,
    ),
    ServerSpec(
        "litserve-batching",
        "LitServe, batching",
        "litserve",
        "peer",
        _script("litserve_app.py"),
        environment="litserve",
        batching=True,
        variables={"BENCH_BATCHING": "1", "BENCH_MAX_BATCH": str(MAX_BATCH)},
    ),
    ServerSpec("mlflow", "MLflow", "mlflow", "peer", _mlflow, protocols.mlflow, "mlflow"),
]
SPECS = {spec.name: spec for spec in ALL}


def _environment(spec: ServerSpec, folder: Path) -> dict[str, str]:
    """Return the variables of a peer: its home is its own folder, so that it leaves no files behind."""
    home = {name: str(folder) for name in ("HOME", "BENTOML_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    model = {"BENCH_MODEL": str(folder.parent / "model"), "BENCH_ANSWER": str(folder.parent / "answer.json")}
    paths = {"PATH": f"{spec.python().parent}{os.pathsep}{os.environ['PATH']}"}
    return {**os.environ, **QUIET, **ONE_THREAD, **home, **model, **paths, **spec.variables}


class Running:
    """A server that has started: its processes, its port and the requests for it."""

    def __init__(self, spec: ServerSpec, port: int, pid: int, request: Request, log: Path) -> None:
        self.spec, self.port, self.request, self.log = spec, port, request, log
        self.tree = ProcessTree(pid)

    def call(self, body: str) -> bytes:
        """Return the body of the answer. Raises `ServerFailed` unless the status is 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": "application/json", "Connection": "close"} | self.request.headers
        try:
            connection.request("POST", self.request.path, body.encode(), headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise ServerFailed(f"status {response.status}: {content.decode(errors='replace')[:300]}")
        return content

    def await_ready(self) -> None:
        """Wait until the first row is answered with status 200."""
        start, problem, refused_since = time.monotonic(), "no answer", None
        while time.monotonic() < start + START_S:
            if not self.tree.is_running():
                raise ServerFailed(f"ended at its start: {self.last_words()}")
            try:
                self.call(self.request.bodies[0])
                return
            except (OSError, http.client.HTTPException):
                pass
            except ServerFailed as error:  # some servers answer with errors while they load the model
                problem, refused_since = str(error), refused_since or time.monotonic()
                if time.monotonic() > refused_since + REFUSED_S:
                    raise
            time.sleep(0.1)
        raise ServerFailed(f"did not start within {START_S:.0f} s: {problem}; {self.last_words()}")

    def last_words(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return " ".join(lines[-3:])[-300:]

    def check_answers(self, model: Model) -> None:
        """Compare the answers to all rows with scikit-learn's, many at a time and some alone.

        A row must not depend on the rows that share its batch. Raises `ServerFailed`.
        """
        if self.request.read is None:
            return
        bodies = self.request.bodies
        with ThreadPoolExecutor(16) as pool:
            contents = [*pool.map(self.call, bodies), *map(self.call, bodies[:ALONE])]
        for number, content in enumerate(contents):
            row, how = number % len(bodies), "alone" if number >= len(bodies) else "among others"
            try:
                answer = np.asarray(self.request.read(json.loads(content)), np.float64)
            except (ValueError, TypeError, LookupError) as error:
                raise ServerFailed(f"row {row}, sent {how}: unexpected answer {content[:200]!r}") from error
            expected = model.answers[row]
            if answer.shape != (len(expected),) or not np.allclose(answer, expected, rtol=0, atol=TOLERANCE):
                row_text = json.dumps(model.rows[row])
                got, right = ([float(f"{p:.4g}") for p in values] for values in (answer.ravel(), expected))
                raise ServerFailed(
                    f"wrong probabilities for the row {row_text}, sent {how}: {got}; scikit-learn: {right}"
                )

    def read_counters(self) -> dict[str, int]:
        """Return the metrics of a variant's work, summed by outcome or reason.

        Raises `ServerFailed` when there are none: a variant that does nothing would look cheap.
        """
        sums = sum_counters(self._metrics(), self.spec.counters)
        if not sums:
            raise ServerFailed(f"did not do its work: no {' and '.join(self.spec.counters)} in its metrics")
        return sums

    def answering_runtime(self) -> str:
        """Return the runtime that answered most rows of this project's server."""
        sums = sum_counters(self._metrics(), (PREDICTED_ROWS,))
        if not sums:
            raise ServerFailed(f"no {PREDICTED_ROWS} in its metrics")
        return max(sums, key=lambda name: sums[name]).split()[-1]

    def _metrics(self) -> str:
        headers = {"Connection": "close"} | self.request.headers
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", "/metrics", headers=headers)
            response = connection.getresponse()
            content = response.read().decode()
        finally:
            connection.close()
        if response.status != 200:
            raise ServerFailed(f"GET /metrics: status {response.status}")
        return content

    def stop(self) -> None:
        stop([self.tree])


PREDICTED_ROWS = "trivium_predicted_rows_total"
COUNTER = re.compile(r"^(\w+)\{(.*)\} ([0-9.e+]+)$", re.MULTILINE)


def sum_counters(text: str, names: tuple[str, ...]) -> dict[str, int]:
    """Sum counters by name and outcome, reason or runtime: {"trivium_shadow_rows_total agreed": 12}."""
    sums: dict[str, int] = {}
    for name, labels, value in COUNTER.findall(text):
        if name in names:
            outcome = re.search(r'(?:outcome|reason|runtime)="(\w+)"', labels)
            key = f"{name} {outcome[1]}" if outcome else name
            sums[key] = sums.get(key, 0) + int(float(value))
    return sums


class ServerSet:
    """All servers for one model. They start when they are first measured, and end together."""

    own: Running
    version: dict[str, Any]
    answer: bytes

    def __init__(self, model: Model, folder: Path, core: int | None) -> None:
        """The folder gets the model's files, the answer of the constant servers, and logs."""
        self.model, self.folder, self.core = model, folder, core
        self._home = folder / "home"
        self._running: dict[str, Running] = {}

    def __enter__(self) -> ServerSet:
        """Publish the model, and start this project's server for the size of its answers."""
        self.model.save(self.folder / "model")
        self.version = self._publish()
        self._save_graph()
        self.own = self.start(SPECS["trivium"])
        try:
            self.answer = max((self.own.call(body) for body in self.own.request.bodies), key=len)
        except BaseException:
            self.own.stop()
            raise
        (self.folder / "answer.json").write_bytes(self.answer)
        self.own.tree.suspend()
        return self

    def __exit__(self, *_: object) -> None:
        stop([server.tree for server in self._running.values()])

    def _publish(self) -> dict[str, Any]:
        with Server(self._home, self.folder / "publish.log") as server:
            server.start()
            return server.publish(self.model.name, self.model.fitted, self.model.example, alias="champion")

    def _save_graph(self) -> None:
        """Write the ONNX graph that the build made, for the servers by hand."""
        with contextlib.closing(sqlite3.connect(self._home / "registry.db")) as database:
            (sha256,) = database.execute("SELECT servable FROM versions").fetchone()
        if sha256:
            blob = self._home / "blobs" / sha256[:2] / sha256
            (self.folder / "model" / "model.onnx").write_bytes(blob.read_bytes())

    def get(self, spec: ServerSpec) -> Running:
        return self._running.get(spec.name) or self.start(spec)

    def start(self, spec: ServerSpec) -> Running:
        """Start a server and check its answers. Raises `ServerFailed`, `InstallationFailed` and `OSError`."""
        folder = self.folder / spec.name
        folder.mkdir(exist_ok=True)
        log = folder / "log"
        is_own = spec.role in ("own", "own variant")
        running = self._start_own(spec, folder, log) if is_own else self._start_peer(spec, folder, log)
        self._running[spec.name] = running
        try:
            running.await_ready()
            running.check_answers(self.model)
        except BaseException:
            running.stop()
            del self._running[spec.name]
            raise
        return running

    def _start_own(self, spec: ServerSpec, folder: Path, log: Path) -> Running:
        """Start this project's server as `trivium serve` does; a variant on a copy of the data directory."""
        home = self._home
        if spec.configure:
            home = folder / "home"
            shutil.copytree(self._home, home)
        server = Server(home, log, environment=ONE_THREAD)
        with on_core(self.core):
            server.start()
        request = protocols.trivium(self.model, server.key)
        running = Running(spec, server.port, server.process.pid, request, log)
        try:
            if spec.configure:
                spec.configure(server, self.model)
            running.tree.await_idle(QUIET_S, SETTLE_S)
        except BaseException:
            running.stop()
            raise
        return running

    def _start_peer(self, spec: ServerSpec, folder: Path, log: Path) -> Running:
        launch = Launch(spec.python(), free_port(), self.model, folder, spec.batching)
        with log.open("wb") as out, on_core(self.core):
            process = subprocess.Popen(
                spec.command(launch), cwd=folder, env=_environment(spec, folder), stdout=out, stderr=out
            )
        own = self.own.request if spec.role == "limit" else None
        request = protocols.constant(own) if own else spec.request(self.model)
        return Running(spec, launch.port, process.pid, request, log)

    def drop(self, spec: ServerSpec) -> None:
        """End a server that failed."""
        running = self._running.pop(spec.name, None)
        if running:
            with contextlib.suppress(OSError):
                running.stop()
