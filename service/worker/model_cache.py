"""The versions that a worker scores with: loaded once, the least recently used go first."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.runtime.loading import Runtime

KEPT = 4
"""So many versions that no lane uses at the moment are kept."""


class Models:
    """Lanes share a runtime that answers several threads at once; of any other each has its own."""

    def __init__(self, load: Callable[[int], Runtime], shared: Callable[[Runtime], bool]) -> None:
        self._load = load
        self._shared = shared
        self._lock = threading.Lock()
        self._loading: dict[int, threading.Lock] = {}  # by version, while it has users or runtimes
        self._runtimes: OrderedDict[int, list[Runtime]] = OrderedDict()  # by version: those to be had
        self._users: Counter[int] = Counter()

    @contextmanager
    def using(self, version_id: int) -> Iterator[Runtime]:
        """A runtime of the version that this thread may ask. Raises what `load` raises."""
        with self._lock:
            self._users[version_id] += 1
        try:
            runtime = self._take(version_id)
            try:
                yield runtime
            finally:
                self._give(version_id, runtime)
        finally:
            with self._lock:
                self._users[version_id] -= 1
            self._evict()

    def close(self) -> None:
        with self._lock:
            held, self._runtimes = self._runtimes, OrderedDict()
        for runtimes in held.values():
            for runtime in runtimes:
                runtime.close()

    def _take(self, version_id: int) -> Runtime:
        with self._lock:
            loading = self._loading.setdefault(version_id, threading.Lock())
        with loading:  # whoever comes second finds what the first has loaded
            with self._lock:
                found = self._runtimes.setdefault(version_id, [])
                self._runtimes.move_to_end(version_id)
                if found:
                    return found[0] if self._shared(found[0]) else found.pop()
            runtime = self._load(version_id)
            if self._shared(runtime):
                with self._lock:
                    self._runtimes[version_id] = [runtime]
            return runtime

    def _give(self, version_id: int, runtime: Runtime) -> None:
        if not self._shared(runtime):
            with self._lock:
                self._runtimes.setdefault(version_id, []).append(runtime)

    def _evict(self) -> None:
        gone: list[Runtime] = []
        with self._lock:
            unused = [v for v in self._runtimes if not self._users[v]]
            for version_id in unused[: max(0, len(unused) - KEPT)]:
                gone += self._runtimes.pop(version_id)
                del self._loading[version_id], self._users[version_id]
        for runtime in gone:
            runtime.close()
