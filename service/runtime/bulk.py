"""The runtime that scores a version's rows in bulk: the fastest that was measured to be the same function."""

from __future__ import annotations

from registry import db
from registry.artifacts import Store
from service.runtime.isolated_runtime import IsolatedRuntime, Spawn
from service.runtime.loading import Found, Runtime, look_up, start
from service.runtime.tflite_runtime import TfliteRuntime
from service.runtime.without import numba_without_scipy


class BatchLoader:
    """A version's table of nodes if it has one, else what online predictions use: ONNX, LiteRT, a process.

    `spawn` starts that process, `deadline_s` bounds one call of it. For workers: a web process is to stay
    without numba.
    """

    def __init__(self, sessions: db.Sessions, store: Store, spawn: Spawn, deadline_s: float) -> None:
        self._sessions, self._store, self._spawn, self._deadline_s = sessions, store, spawn, deadline_s

    def __call__(self, version_id: int) -> Runtime:
        """Raises `NotReady` when the version was deleted or is not built, `Unavailable` when what it needs
        cannot be loaded."""
        return load(look_up(self._sessions, version_id), self._store, self._spawn, self._deadline_s)


def load(found: Found, store: Store, spawn: Spawn, deadline_s: float) -> Runtime:
    """Raises `Unavailable` when what the version needs cannot be loaded."""
    if found.forest is None:
        return start(found, store, spawn, deadline_s)
    numba_without_scipy()
    from service.runtime.forest_runtime import ForestRuntime  # numba, 0.3 s and 70 MB: for those who need it

    return ForestRuntime(store.path(found.forest), found.signature)


def is_shared(runtime: Runtime) -> bool:
    """May several lanes ask it at once, and gain by that? Of any other each lane loads one of its own."""
    return not isinstance(runtime, TfliteRuntime | IsolatedRuntime)
