"""The models that a worker's lanes score with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from registry.errors import Unavailable
from service.runtime.loading import ModelRuntime
from service.runtime.model_cache import CacheEntry, ModelCache

MAX_UNUSED = 4
"""Versions that stay loaded although no lane uses them."""

IsShared = Callable[[ModelRuntime], bool]


class LaneModels:
    """A cache of version id to runtimes. Each version is loaded once; unused ones are evicted.

    Lanes share a runtime for which `is_shared` is true. Of any other, each lane uses its own.
    """

    def __init__(
        self,
        load: Callable[[int], ModelRuntime],
        is_shared: IsShared,
        fallback: Callable[[int], str | None] = lambda version_id: None,
    ) -> None:
        """`fallback` returns how a version is served now: a version that was loaded for another one is
        loaded again, because a check found that it answers differently."""
        self._fallback = fallback
        self._cache = ModelCache(
            lambda version_id: VersionRuntimes(lambda: load(version_id), is_shared, fallback(version_id))
        )

    @contextmanager
    def using(self, version_id: int) -> Iterator[ModelRuntime]:
        """Yield a runtime of the version for the calling thread. Raises what `load` raises."""
        entry = self._acquire(version_id)
        try:
            with entry.model.using() as runtime:
                yield runtime
        finally:
            self._cache.release(entry)
            self._cache.retire_unused(MAX_UNUSED)

    def _acquire(self, version_id: int) -> CacheEntry[VersionRuntimes]:
        """Return the loaded version, loaded again if it was loaded for another fallback."""
        while True:
            entry = self._cache.acquire(version_id)
            try:
                entry.load.result()
                is_current = entry.model.fallback == self._fallback(version_id)
            except BaseException:
                self._cache.release(entry)
                raise
            if is_current:
                return entry
            self._cache.retire(entry)
            self._cache.release(entry)

    def close(self) -> None:
        self._cache.close(Unavailable("the worker is shutting down"))


class VersionRuntimes:
    """The runtimes of one version: one that all lanes share, or as many as lanes use at the same time."""

    def __init__(
        self, load: Callable[[], ModelRuntime], is_shared: IsShared, fallback: str | None = None
    ) -> None:
        self.fallback = fallback  # the version's before it was loaded
        self._load = load
        self._loading = threading.Lock()  # one load at a time
        runtime = load()
        self._shared = runtime if is_shared(runtime) else None
        self._free = [] if is_shared(runtime) else [runtime]

    @contextmanager
    def using(self) -> Iterator[ModelRuntime]:
        if self._shared is not None:
            yield self._shared
            return
        with self._loading:
            runtime = self._free.pop() if self._free else self._load()
        try:
            yield runtime
        finally:
            self._free.append(runtime)

    def close(self) -> None:
        for runtime in [self._shared] if self._shared is not None else self._free:
            runtime.close()
