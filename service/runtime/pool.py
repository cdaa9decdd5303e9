"""Models in memory: loaded on first use, swapped when an alias moves, evicted least recently used.

The new version is loaded before the old one goes: a version that requests still use is closed only
when the last of them is done. Everything but loading and closing happens on the event loop, so the
books need no lock; all the same, a prediction that finds its model loaded waits for nothing.

Loads have threads of their own: one that takes minutes keeps no prediction waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from registry.errors import TriviumError, Unavailable
from service import telemetry

if TYPE_CHECKING:  # numpy and ONNX Runtime come with the first load, not with the start
    from service.runtime.loading import Loaded

LOADS = 4
"""How many versions are loaded at once: it takes memory, and a core each."""

log = telemetry.logger(__name__)

Load = Callable[[int], "Loaded"]
"""Load the version with this id. Blocks. Raises `NotReady`, `NotFound`, `Unavailable`."""


class Pool:
    def __init__(self, load: Load, limit_bytes: int) -> None:
        self._load = load
        self._limit = limit_bytes
        self._executor = ThreadPoolExecutor(LOADS, thread_name_prefix="load")
        self._models: OrderedDict[int, Loaded] = OrderedDict()  # by version id, least recently used first
        self._loading: dict[int, asyncio.Task[Loaded]] = {}
        self._waiting: Counter[int] = Counter()  # requests for each version that is being loaded

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
        return loaded if loaded is not None else await asyncio.shield(self._load_of(version_id))

    async def take(self, version_id: int) -> Loaded:
        """`get` for a request: until it calls `release` the version is not closed under it."""
        loaded = self.peek(version_id)
        if loaded is not None:
            loaded.users += 1
            return loaded
        load = self._load_of(version_id)
        self._waiting[version_id] += 1  # `_bring` counts those who wait as users
        try:
            return await asyncio.shield(load)
        except asyncio.CancelledError:
            if version_id in self._waiting and not load.done():
                self._waiting[version_id] -= 1
            elif not load.cancelled() and load.exception() is None:
                self.release(load.result())
            raise

    def release(self, loaded: Loaded) -> None:
        loaded.users -= 1
        if loaded.retired and loaded.users == 0:
            self._executor.submit(loaded.close)

    async def warm(self, version_ids: list[int]) -> None:
        """Load these as far as memory allows; what cannot be loaded is logged, not raised."""
        for version_id in version_ids:
            if version_id in self._models:
                continue
            held = len(self._models)
            try:
                await self.get(version_id)
                if len(self._models) <= held:
                    return  # it took another's place: memory is full, and going on would only go round
            except TriviumError as error:
                log.warning("model.not_loaded", version_id=version_id, error=str(error))

    def keep(self, version_ids: set[int]) -> None:
        """Drop every loaded version that is not among these: deleted or archived."""
        for version_id in [i for i in self._models if i not in version_ids]:
            self._drop(version_id)

    @property
    def bytes(self) -> int:
        return sum(m.runtime.bytes for m in list(self._models.values()))  # a list: other threads ask too

    def by_kind(self) -> dict[str, int]:
        """How many versions are loaded, by runtime."""
        kinds = [m.kind for m in list(self._models.values())]
        return {kind: kinds.count(kind) for kind in ("onnx", "tflite", "isolated")}

    async def close(self) -> None:
        """End every load and every runtime."""
        loads = list(self._loading.values())
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        self._executor.shutdown(wait=False, cancel_futures=True)
        while self._models:
            _, loaded = self._models.popitem()
            await asyncio.to_thread(loaded.close)

    def _load_of(self, version_id: int) -> asyncio.Task[Loaded]:
        """The load of this version, begun now if need be. A client that goes away does not stop it."""
        load = self._loading.get(version_id)
        if load is None:
            load = asyncio.create_task(self._bring(version_id))
            load.add_done_callback(_noted)
            self._loading[version_id] = load
        return load

    async def _bring(self, version_id: int) -> Loaded:
        start = time.perf_counter()
        thread = self._executor.submit(self._load, version_id)
        try:
            loaded = await asyncio.wrap_future(thread)
            loaded.users += self._waiting[version_id]
        except asyncio.CancelledError:
            thread.add_done_callback(_discard)
            raise
        except TriviumError:
            raise
        except Exception as error:
            log.exception("model.load_failed", version_id=version_id)
            raise Unavailable(f"the model could not be loaded: {error}") from error
        finally:
            del self._loading[version_id]
            self._waiting.pop(version_id, None)
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
            self._executor.submit(loaded.close)


def _noted(load: asyncio.Task[Loaded]) -> None:
    """A load may fail when nobody waits for it any more."""
    if not load.cancelled():
        load.exception()


def _discard(load: Future[Loaded]) -> None:
    """Close what a thread goes on loading after the pool was closed."""
    if not load.cancelled() and load.exception() is None:
        load.result().close()
