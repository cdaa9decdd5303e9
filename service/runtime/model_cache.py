"""Cache of loaded models: load once, share, evict the least recently used, close after the last use.

The server's `Pool` and the batch worker's `LaneModels` are built on it. Each adds its own rule for what to
evict; this module counts the users.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    def close(self) -> None: ...


Model = TypeVar("Model", bound=Closable)


class CacheEntry(Generic[Model]):
    """A cached model, or one that is being loaded."""

    def __init__(self, key: int, is_spare: bool = False) -> None:
        self.key = key
        self.is_spare = is_spare  # loaded only as far as it takes no memory from others
        self.model: Model  # set when the load succeeds
        self.is_loaded = False
        self.users = 0  # callers that use the model or wait for its load
        self.retired = False  # no longer in the cache: closed when the last user releases it
        self.closed = False
        self.load: Future[None] = Future()  # done when the model is loaded; otherwise holds the load's error
        self.load.set_running_or_notify_cancel()  # a caller that stops waiting must not cancel the load


class ModelCache(Generic[Model]):
    """Models by key. Thread-safe.

    `load` returns the model for a key. `run` executes loads and closes, which block: in an executor, or in
    the calling thread. `after_load` is called in the loading thread once an entry's model is set, before
    callers that wait for it continue.
    """

    def __init__(
        self,
        load: Callable[[int], Model],
        run: Callable[[Callable[[], object]], object] = lambda load: load(),
        after_load: Callable[[CacheEntry[Model]], object] = lambda entry: None,
    ) -> None:
        self._load = load
        self._run = run
        self._after_load = after_load
        self._lock = threading.Lock()
        self._entries: OrderedDict[int, CacheEntry[Model]] = OrderedDict()  # least recently used first
        self._closed_with: Exception | None = None

    def __contains__(self, key: int) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry.is_loaded

    def entries(self) -> list[CacheEntry[Model]]:
        """The entries whose model is loaded, least recently used first."""
        with self._lock:
            return [entry for entry in self._entries.values() if entry.is_loaded]

    def acquire(self, key: int, *, is_spare: bool = False) -> CacheEntry[Model]:
        """Return the entry for `key` and count the caller as a user; start the load of a new entry.

        An entry is spare while all calls of this method for it were.

        The caller waits for `entry.load`, and calls `release` in every case. Raises the error of `close` once
        the cache is closed.
        """
        with self._lock:
            if self._closed_with is not None:
                raise self._closed_with
            entry = self._entries.get(key)
            is_new = entry is None
            if entry is None:
                entry = self._entries[key] = CacheEntry(key, is_spare)
            self._entries.move_to_end(key)
            entry.users += 1
            entry.is_spare &= is_spare
        if is_new:
            self._run(lambda: self._load_entry(entry))
        return entry

    def acquire_loaded(self, key: int) -> CacheEntry[Model] | None:
        """Return the entry for `key` and count the caller as a user, or return None if it is not loaded."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not entry.is_loaded:
                return None
            self._entries.move_to_end(key)
            entry.users += 1
            return entry

    def release(self, entry: CacheEntry[Model]) -> None:
        with self._lock:
            entry.users -= 1
            closes = self._closes_now(entry)
        if closes:
            self._run(entry.model.close)

    def retire(self, entry: CacheEntry[Model]) -> bool:
        """Remove the entry; its last user closes the model. Return False if it was removed before."""
        with self._lock:
            if entry.retired:
                return False
            self._remove(entry)
            closes = self._closes_now(entry)
        if closes:
            self._run(entry.model.close)
        return True

    def reload(self, entry: CacheEntry[Model]) -> None:
        """Load the model of an entry again, then replace the entry. Its last user closes the old model.

        If the load fails, the old model stays.
        """
        self._run(lambda: self._reload_entry(entry))

    def retire_unused(self, max_unused: int) -> None:
        """Remove the least recently used entries without users, except for the last `max_unused`."""
        with self._lock:
            unused = [entry for entry in self._entries.values() if entry.is_loaded and not entry.users]
            surplus = unused[: max(0, len(unused) - max_unused)]
            for entry in surplus:
                self._remove(entry)
                entry.closed = True
        for entry in surplus:
            self._run(entry.model.close)

    def close(self, error: Exception) -> None:
        """Close every model, used or not, in this thread. Callers of `acquire` get `error`, now and later."""
        with self._lock:
            self._closed_with = error
            entries = list(self._entries.values())
            for entry in entries:
                self._remove(entry)
                if not entry.load.done():
                    entry.load.set_exception(error)
            loaded = [entry for entry in entries if entry.is_loaded]
            for entry in loaded:
                entry.closed = True
        for entry in loaded:
            entry.model.close()

    def _load_entry(self, entry: CacheEntry[Model]) -> None:
        try:
            model = self._load(entry.key)
        except BaseException as error:
            with self._lock:
                self._remove(entry)
                if not entry.load.done():
                    entry.load.set_exception(error)
            return
        with self._lock:
            cache_is_closed = entry.load.done()
            if not cache_is_closed:
                entry.model, entry.is_loaded = model, True
        if cache_is_closed:
            model.close()
            return
        try:
            self._after_load(entry)
        finally:
            with self._lock:
                if not entry.load.done():
                    entry.load.set_result(None)

    def _reload_entry(self, old: CacheEntry[Model]) -> None:
        new: CacheEntry[Model] = CacheEntry(old.key, old.is_spare)
        try:
            new.model, new.is_loaded = self._load(old.key), True
        except Exception:  # the version was deleted meanwhile, or the memory is full
            return
        new.load.set_result(None)
        with self._lock:
            is_current = self._entries.get(old.key) is old
            if is_current:
                self._entries[old.key] = new
                old.retired = True
            closes = is_current and self._closes_now(old)
        if not is_current:
            new.model.close()
            return
        if closes:
            old.model.close()
        self._after_load(new)

    def _remove(self, entry: CacheEntry[Model]) -> None:
        entry.retired = True
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]

    def _closes_now(self, entry: CacheEntry[Model]) -> bool:
        """Whether the caller must close the entry's model: it is retired and its last user has left."""
        if not entry.retired or entry.users or not entry.is_loaded or entry.closed:
            return False
        entry.closed = True
        return True
