"""Models in the server's memory: loaded on first use, replaced when an alias moves, evicted under a limit.

A new version is loaded before the old one is dropped, and a version in use is closed only after its last
request. Loads run in threads of their own: a slow load delays no prediction, and a prediction with a loaded
model waits for no load.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from registry.errors import TriviumError, Unavailable
from registry.vocabulary import ANSWERING_RUNTIMES
from service import telemetry
from service.runtime.model_cache import CacheEntry, ModelCache

if TYPE_CHECKING:  # see service/startup.py
    from service.runtime.loading import LoadedModel

MAX_LOADS = 4
"""Versions loaded at the same time: a load takes memory and a core."""

log = telemetry.logger(__name__)

Load = Callable[[int], "LoadedModel"]
"""Load the version with this id. Blocks. Raises `NotReady`, `NotFound`, `Unavailable`."""


class Pool:
    """Loaded versions by id, up to `limit_bytes`. The version loaded last always stays."""

    def __init__(self, load: Load, limit_bytes: int) -> None:
        self._load = load
        self._limit = limit_bytes
        self._executor = ThreadPoolExecutor(MAX_LOADS, thread_name_prefix="load")
        self._cache: ModelCache[LoadedModel] = ModelCache(self._load_version, self._run, self._add)
        self._evicting = threading.Lock()
        self._fallbacks: dict[int, str | None] = {}  # of the last call of `keep_only`

    async def get(self, version_id: int) -> LoadedModel:
        """Return the version, loaded if necessary. It may be closed at any time: requests use `acquire`.

        Raises what `Load` raises.
        """
        entry = await self.acquire(version_id)
        self.release(entry)
        return entry.model

    async def acquire(self, version_id: int) -> CacheEntry[LoadedModel]:
        """Return the entry of a loaded version. The version stays open until the caller calls `release`.

        Concurrent callers wait for the same load; it continues when they are cancelled. Raises what `Load`
        raises.
        """
        entry = self._cache.acquire(version_id)
        if not entry.is_loaded:
            try:
                await asyncio.wrap_future(entry.load)
            except BaseException:
                self._cache.release(entry)
                raise
        return entry

    def acquire_loaded(self, version_id: int) -> CacheEntry[LoadedModel] | None:
        """Return what `acquire` returns if the version is loaded, otherwise None: without a coroutine."""
        return self._cache.acquire_loaded(version_id)

    async def load_spare(self, version_id: int) -> None:
        """Load the version, if it fits into the memory without the eviction of another one.

        It is evicted before all others until a caller uses it or `get` returns it. Raises what `Load` raises,
        and `Unavailable`.
        """
        entry = self._cache.acquire(version_id, is_spare=True)
        try:
            await asyncio.wrap_future(entry.load)
            if entry.retired:
                raise Unavailable("the version does not fit into the memory beside the loaded ones")
        finally:
            self._cache.release(entry)

    def release(self, entry: CacheEntry[LoadedModel]) -> None:
        self._cache.release(entry)

    async def warm(self, version_ids: list[int]) -> None:
        """Load these versions until memory is full. Logs the versions that cannot be loaded."""
        for version_id in version_ids:
            if version_id in self._cache:
                self._cache.release(self._cache.acquire(version_id))  # it may have been a spare one
                continue
            count = len(self._cache.entries())
            try:
                await self.get(version_id)
                if len(self._cache.entries()) <= count:
                    return  # it evicted another version: more loads would evict what was just loaded
            except TriviumError as error:
                log.warning("model.not_loaded", version_id=version_id, error=str(error))

    def keep_only(self, fallbacks: dict[int, str | None]) -> None:
        """Drop the loaded versions that are not among `fallbacks`, or were loaded for another one.

        Those were deleted, archived, or found to answer differently. A version that is being loaded for
        another one is dropped once it is loaded.
        """
        self._fallbacks = fallbacks
        for entry in self._cache.entries():
            if entry.key not in fallbacks or entry.model.fallback != fallbacks[entry.key]:
                self._unload(entry)

    def use_compiled_kernel(self) -> None:
        """Load the versions again that wait for the compiled kernel, once it is there.

        Calls are answered by the loaded version meanwhile.
        """
        waiting = [entry for entry in self._cache.entries() if entry.model.waits_for_kernel]
        if not waiting:
            return
        from service.runtime import kernel_code  # the first load of such a version imported it

        if kernel_code.is_compiled():
            for entry in waiting:
                entry.model.waits_for_kernel = False
                self._cache.reload(entry)

    @property
    def bytes(self) -> int:
        return sum(model.runtime.bytes for model in self.loaded())

    def count_by_runtime(self) -> dict[str, int]:
        """Count the loaded versions of each runtime."""
        kinds = [model.kind for model in self.loaded()]
        return {runtime: kinds.count(runtime) for runtime in ANSWERING_RUNTIMES}

    def loaded(self) -> list[LoadedModel]:
        """Return the loaded versions, least recently used first."""
        return [entry.model for entry in self._cache.entries()]

    async def close(self) -> None:
        """Cancel the loads that have not begun, and close every model."""
        await asyncio.to_thread(self._cache.close, Unavailable("the server is shutting down"))
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _run(self, load: Callable[[], object]) -> None:
        try:
            self._executor.submit(load)
        except RuntimeError:  # it was shut down
            load()

    def _load_version(self, version_id: int) -> LoadedModel:
        start = time.perf_counter()
        try:
            model = self._load(version_id)
        except TriviumError:
            raise
        except Exception as error:
            log.exception("model.load_failed", version_id=version_id)
            raise Unavailable(f"the model could not be loaded: {error}") from error
        seconds = round(time.perf_counter() - start, 3)
        log.info("model.loaded", model=model.name, version=model.number, runtime=model.kind, seconds=seconds)
        return model

    def _add(self, loaded: CacheEntry[LoadedModel]) -> None:
        """Make room for a version that was loaded, or drop it if a check changed its fallback meanwhile."""
        fallback = loaded.model.fallback
        if self._fallbacks.get(loaded.key, fallback) == fallback:
            self._evict(loaded)
        else:
            self._unload(loaded)

    def _evict(self, loaded: CacheEntry[LoadedModel]) -> None:
        """Drop spare versions, then the least recently used ones, until the remaining ones fit.

        `loaded` stays, unless it is a spare one.
        """
        with self._evicting:
            excess = self.bytes - self._limit
            entries = self._cache.entries()
            if loaded.is_spare and excess > 0:
                self._unload(loaded)
                return
            for entry in sorted(entries, key=lambda entry: not entry.is_spare):
                if excess <= 0:
                    return
                if entry is not loaded:
                    excess -= entry.model.runtime.bytes
                    telemetry.EVICTIONS.inc()
                    self._unload(entry)

    def _unload(self, entry: CacheEntry[LoadedModel]) -> None:
        if self._cache.retire(entry):
            log.info("model.unloaded", model=entry.model.name, version=entry.model.number)
