"""From a version's row and blob to something that answers: codec, runtime, and what a call costs."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import msgspec
from prometheus_client import Counter, Histogram
from sqlalchemy import select

from registry import db, schema
from registry.artifacts import Store
from registry.errors import Invalid, NotReady
from registry.rows import Outputs, Rows
from registry.signature import Signature
from registry.tables import ModelRow, VersionRow
from service import telemetry
from service.runtime.codec import Codec
from service.runtime.isolated_runtime import IsolatedRuntime, Spawn
from service.runtime.onnx_runtime import OnnxRuntime
from service.runtime.tflite_runtime import TfliteRuntime

INLINE_S = 0.001
"""A call that takes less stays on the event loop: a hop to a thread and back costs about 0.1 ms."""


class Runtime(Protocol):
    @property
    def bytes(self) -> int: ...
    def run(self, rows: Rows) -> Outputs: ...
    def close(self) -> None: ...


class Loaded:
    """A version ready to answer."""

    def __init__(self, name: str, number: int, kind: str, signature: Signature, runtime: Runtime) -> None:
        self.name, self.number, self.kind, self.runtime = name, number, kind, runtime
        self.codec = Codec(signature)
        self.headers = [(b"x-model-name", name.encode()), (b"x-model-version", b"%d" % number)]
        self.row_s = float("inf")  # seconds a row costs; infinite: always off the event loop
        # Calls of an isolated model, and of LiteRT's interpreter, take turns: they wait for them where they
        # are in nobody else's way, and never on the event loop.
        self.line = ThreadPoolExecutor(1, thread_name_prefix=f"{kind} {name}") if kind != "onnx" else None
        self.users = 0
        self.retired = False
        labels = (name, str(number), kind)
        self.seconds: Histogram = telemetry.PREDICT_SECONDS.labels(*labels)
        self.rows: Counter = telemetry.PREDICTED_ROWS.labels(*labels)
        self._try(signature)

    def close(self) -> None:
        self.runtime.close()
        if self.line is not None:
            self.line.shutdown(wait=False)

    def quick(self, rows: int) -> bool:
        """Is this call cheap enough for the event loop?"""
        return rows * self.row_s < INLINE_S

    def _try(self, signature: Signature) -> None:
        """Run the signature's example: warms the model up, and measures one in this process."""
        body = msgspec.json.encode({"instances": [schema.instance_example(signature)]})
        fastest = float("inf")
        try:
            rows = self.codec.decode_json(body)
            for _ in range(3 if self.kind == "onnx" else 1):
                start = time.perf_counter()
                self.runtime.run(rows)
                fastest = min(fastest, time.perf_counter() - start)
        except Invalid:  # made-up values that this model does not take; nothing is known about its cost
            return
        if self.kind == "onnx":
            self.row_s = fastest


class Loader:
    """Reads a version's row and blob and starts the runtime that its build chose."""

    def __init__(self, sessions: db.Sessions, store: Store, spawn: Spawn, deadline_s: float) -> None:
        self._sessions, self._store, self._spawn, self._deadline_s = sessions, store, spawn, deadline_s

    def __call__(self, version_id: int) -> Loaded:
        found = look_up(self._sessions, version_id)
        runtime = start(found, self._store, self._spawn, self._deadline_s)
        return Loaded(found.name, found.number, found.runtime, found.signature, runtime)


class Found(NamedTuple):
    """What a version's row says about running it; `blob` and `forest` are sha256."""

    name: str
    number: int
    runtime: str
    format: str
    blob: str
    forest: str | None
    signature: Signature


def look_up(sessions: db.Sessions, version_id: int) -> Found:
    """Raises `NotReady` when it was deleted or is not built."""
    with db.reading(sessions) as session:
        row = session.execute(
            select(
                ModelRow.name,
                VersionRow.number,
                VersionRow.runtime,
                VersionRow.format,
                VersionRow.artifact,
                VersionRow.servable,
                VersionRow.forest,
                VersionRow.signature,
            )
            .join(ModelRow, ModelRow.id == VersionRow.model_id)
            .where(VersionRow.id == version_id)
        ).one_or_none()
    if row is None or row.runtime is None:
        raise NotReady("the version was deleted or is not built")
    return Found(
        row.name,
        row.number,
        row.runtime,
        row.format,
        row.servable or row.artifact,
        row.forest,
        Signature.from_json(row.signature),
    )


def start(found: Found, store: Store, spawn: Spawn, deadline_s: float) -> Runtime:
    """The runtime that the version's build chose. Raises `Unavailable`."""
    path = store.path(found.blob)
    if found.runtime == "onnx":
        return OnnxRuntime(path, found.signature)
    if found.runtime == "tflite":
        return TfliteRuntime(path, found.signature)
    return IsolatedRuntime(spawn, path, found.format, found.signature, deadline_s)
