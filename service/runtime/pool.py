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
from typing import TYPE_CHECKING

from registry.errors import TriviumError, Unavailable
from service import telemetry

if TYPE_CHECKING:  # numpy and ONNX Runtime come with the first load, not with the start
    from service.runtime.loading import Loaded

log = telemetry.logger(__name__)

Load = Callable[[int], "Loaded"]
"""Load the version with this id. Blocks. Raises `NotReady`, `NotFound`, `Unavailable`."""


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
