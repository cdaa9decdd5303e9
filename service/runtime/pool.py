"""Models in memory: loaded on first use, swapped when an alias moves, evicted least recently used.

The new version is loaded before the old one goes: a version that requests still use is closed only
when the last of them is done. Everything but loading and closing happens on the event loop, so the
books need no lock; all the same, a prediction that finds its model loaded waits for nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol

import msgspec
from prometheus_client import Counter, Histogram
from sqlalchemy import select

from registry import db, schema
from registry.artifacts import Store
from registry.errors import Invalid, NotReady, TriviumError, Unavailable
from registry.rows import Outputs, Rows
from registry.signature import Signature
from registry.tables import ModelRow, VersionRow
from service import telemetry
from service.runtime.codec import Codec
from service.runtime.isolated import IsolatedRuntime, Spawn
from service.runtime.onnx import OnnxRuntime

INLINE_S = 0.001
"""A call that takes less stays on the event loop: a hop to a thread and back costs about 0.1 ms."""

log = telemetry.logger(__name__)


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
        self.row_s = float("inf")  # seconds a row costs; infinite: always off the event loop
        self.users = 0
        self.retired = False
        labels = (name, str(number), kind)
        self.seconds: Histogram = telemetry.PREDICT_SECONDS.labels(*labels)
        self.rows: Counter = telemetry.PREDICTED_ROWS.labels(*labels)
        self._try(signature)

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


Load = Callable[[int], Loaded]
"""Load the version with this id. Blocks. Raises `NotReady`, `NotFound`, `Unavailable`."""


class Loader:
    """Reads a version's row and blob and starts the runtime that its build chose."""

    def __init__(self, sessions: db.Sessions, store: Store, spawn: Spawn, deadline_s: float) -> None:
        self._sessions, self._store, self._spawn, self._deadline_s = sessions, store, spawn, deadline_s

    def __call__(self, version_id: int) -> Loaded:
        with db.reading(self._sessions) as session:
            row = session.execute(
                select(
                    ModelRow.name,
                    VersionRow.number,
                    VersionRow.runtime,
                    VersionRow.format,
                    VersionRow.artifact,
                    VersionRow.servable,
                    VersionRow.signature,
                )
                .join(ModelRow, ModelRow.id == VersionRow.model_id)
                .where(VersionRow.id == version_id)
            ).one_or_none()
        if row is None or row.runtime is None:
            raise NotReady("the version was deleted or is not built")
        signature = Signature.from_json(row.signature)
        runtime = self._start(
            row.runtime, row.format, self._store.path(row.servable or row.artifact), signature
        )
        return Loaded(row.name, row.number, row.runtime, signature, runtime)

    def _start(self, kind: str, format: str, path: Path, signature: Signature) -> Runtime:
        if kind == "onnx":
            return OnnxRuntime(path, signature)
        return IsolatedRuntime(self._spawn, path, format, signature, self._deadline_s)


class Pool:
    def __init__(self, load: Load, limit_bytes: int, executor: Executor) -> None:
        self._load = load
        self._limit = limit_bytes
        self._executor = executor
        self._models: OrderedDict[int, Loaded] = OrderedDict()  # by version id, least recently used first
        self._loading: dict[int, asyncio.Task[Loaded]] = {}
        self._turn = asyncio.Lock()  # one load at a time: loading takes memory and a core

    def peek(self, version_id: int) -> Loaded | None:
        """The version if it is loaded; counts as a use."""
        loaded = self._models.get(version_id)
        if loaded is not None:
            self._models.move_to_end(version_id)
        return loaded

    async def get(self, version_id: int) -> Loaded:
        """The version, loaded now if need be. Requests that arrive meanwhile wait for the same load.

        Raises what `Load` raises.
        """
        loaded = self.peek(version_id)
        if loaded is not None:
            return loaded
        task = self._loading.get(version_id)
        if task is None:
            task = asyncio.create_task(self._bring(version_id))
            self._loading[version_id] = task
            task.add_done_callback(lambda _: self._loading.pop(version_id, None))
        return await asyncio.shield(task)  # a client that goes away does not stop the load

    def acquire(self, loaded: Loaded) -> None:
        """A request starts to use it: it will not be closed under it."""
        loaded.users += 1

    def release(self, loaded: Loaded) -> None:
        loaded.users -= 1
        if loaded.retired and loaded.users == 0:
            self._executor.submit(loaded.runtime.close)

    async def warm(self, version_ids: list[int]) -> None:
        """Load these as far as memory allows; what cannot be loaded is logged, not raised."""
        for version_id in version_ids:
            if version_id in self._models:
                continue
            if self.bytes >= self._limit:
                return
            try:
                await self.get(version_id)
            except TriviumError as error:
                log.warning("model.not_loaded", version_id=version_id, error=str(error))

    def keep(self, version_ids: set[int]) -> None:
        """Drop every loaded version that is not among these: deleted or archived."""
        for version_id in [i for i in self._models if i not in version_ids]:
            self._drop(version_id)

    @property
    def bytes(self) -> int:
        return sum(m.runtime.bytes for m in self._models.values())

    def by_kind(self) -> dict[str, int]:
        """How many versions are loaded, by runtime."""
        kinds = [m.kind for m in self._models.values()]
        return {kind: kinds.count(kind) for kind in ("onnx", "isolated")}

    def close(self) -> None:
        """End every runtime. Blocks."""
        for task in self._loading.values():
            task.cancel()
        for loaded in self._models.values():
            loaded.runtime.close()
        self._models.clear()

    async def _bring(self, version_id: int) -> Loaded:
        async with self._turn:
            loop = asyncio.get_running_loop()
            start = time.perf_counter()
            try:
                loaded = await loop.run_in_executor(self._executor, self._load, version_id)
            except TriviumError:
                raise
            except Exception as error:
                log.exception("model.load_failed", version_id=version_id)
                raise Unavailable(f"the model could not be loaded: {error}") from error
            self._models[version_id] = loaded
            seconds = round(time.perf_counter() - start, 3)
            log.info(
                "model.loaded", model=loaded.name, version=loaded.number, runtime=loaded.kind, seconds=seconds
            )
            self._evict(keep=version_id)
            return loaded

    def _evict(self, keep: int) -> None:
        held = self.bytes
        for version_id in [i for i in self._models if i != keep]:
            if held <= self._limit:
                return
            held -= self._models[version_id].runtime.bytes
            telemetry.EVICTIONS.inc()
            self._drop(version_id)

    def _drop(self, version_id: int) -> None:
        loaded = self._models.pop(version_id)
        loaded.retired = True
        log.info("model.unloaded", model=loaded.name, version=loaded.number)
        if loaded.users == 0:
            self._executor.submit(loaded.runtime.close)
