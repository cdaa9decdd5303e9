"""The cache of loaded models that the server's pool and the worker's lanes share."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from registry.errors import Unavailable
from service.runtime.model_cache import CacheEntry, ModelCache
from tests.registry.helpers import threads


class StubModel:
    def __init__(self, key: int) -> None:
        self.key = key
        self.times_closed = 0

    def close(self) -> None:
        self.times_closed += 1


def test_a_model_is_loaded_once_for_all_users() -> None:
    cache = ModelCache(StubModel)
    entries = [cache.acquire(1), cache.acquire(1)]
    assert entries[0] is entries[1]
    assert entries[0].users == 2
    assert 1 in cache


def test_entries_are_ordered_by_their_last_use() -> None:
    cache = ModelCache(StubModel)
    for key in (1, 2, 3, 1):
        cache.release(cache.acquire(key))
    assert [entry.key for entry in cache.entries()] == [2, 3, 1]


def test_a_retired_model_is_closed_by_its_last_user_and_loaded_again_by_the_next() -> None:
    cache = ModelCache(StubModel)
    first, _ = cache.acquire(1), cache.acquire(1)
    assert cache.retire(first)
    assert not cache.retire(first)
    assert 1 not in cache
    cache.release(first)
    assert first.model.times_closed == 0
    cache.release(first)
    assert first.model.times_closed == 1
    assert cache.acquire(1).model is not first.model


def test_the_least_recently_used_models_without_users_are_retired() -> None:
    cache = ModelCache(StubModel)
    model_in_use = cache.acquire(1)
    unused_models = [cache.acquire(key) for key in (2, 3, 4)]
    for entry in unused_models:
        cache.release(entry)
    cache.retire_unused(2)
    assert [entry.key for entry in cache.entries()] == [1, 3, 4]
    cache.retire_unused(0)
    assert [entry.key for entry in cache.entries()] == [1]
    cache.release(model_in_use)
    assert [entry.model.times_closed for entry in (model_in_use, *unused_models)] == [0, 1, 1, 1]


def test_callers_get_their_model_if_the_eviction_after_its_load_fails() -> None:
    def fail(entry: CacheEntry[StubModel]) -> None:
        raise ValueError("cannot evict")

    with ThreadPoolExecutor(1) as executor:
        cache = ModelCache(StubModel, executor.submit, fail)
        entry = cache.acquire(1)
        entry.load.result(10)
    assert entry.model.key == 1


def test_a_failed_load_leaves_no_entry() -> None:
    errors = [Unavailable("broken")]

    def load(key: int) -> StubModel:
        if errors:
            raise errors.pop()
        return StubModel(key)

    cache = ModelCache(load)
    entry = cache.acquire(1)
    with pytest.raises(Unavailable, match="broken"):
        entry.load.result(0)
    cache.release(entry)
    assert 1 not in cache
    assert cache.acquire(1).model.key == 1


def test_callers_wait_for_a_load_in_another_thread() -> None:
    gate, loading = threading.Event(), threading.Event()

    def load(key: int) -> StubModel:
        loading.set()
        gate.wait(10)
        return StubModel(key)

    cache = ModelCache(load)

    def second() -> StubModel:
        assert loading.wait(10)
        entry = cache.acquire(1)
        assert not entry.is_loaded
        gate.set()
        entry.load.result(10)
        return entry.model

    models = threads(lambda: cache.acquire(1).model, second)
    assert models[0] is models[1]


def test_a_closed_cache_has_closed_each_model_once_and_loads_none() -> None:
    cache = ModelCache(StubModel)
    model_in_use, unused_model = cache.acquire(1), cache.acquire(2)
    cache.release(unused_model)
    cache.close(Unavailable("closed"))
    cache.close(Unavailable("closed"))
    cache.release(model_in_use)
    assert [model_in_use.model.times_closed, unused_model.model.times_closed] == [1, 1]
    with pytest.raises(Unavailable, match="closed"):
        cache.acquire(3)


def test_a_model_without_users_is_closed_when_it_is_retired() -> None:
    cache = ModelCache(StubModel)
    entry = cache.acquire(1)
    cache.release(entry)
    assert entry.model.times_closed == 0
    assert cache.retire(entry)
    assert entry.model.times_closed == 1
    assert not cache.retire(entry)
    assert entry.model.times_closed == 1


def test_a_retired_entry_does_not_remove_its_successor() -> None:
    cache = ModelCache(StubModel)
    first = cache.acquire(1)
    cache.retire(first)
    second = cache.acquire(1)
    cache.release(first)
    assert not cache.retire(first)
    assert cache.entries() == [second]
    assert (first.model.times_closed, second.model.times_closed) == (1, 0)


def test_a_caller_that_stops_waiting_does_not_cancel_the_load_of_others() -> None:
    loads: list[Callable[[], object]] = []
    cache = ModelCache(StubModel, loads.append)
    entry, other = cache.acquire(1), cache.acquire(1)
    assert not entry.load.cancel()
    cache.release(entry)
    loads.pop()()
    assert other.load.result(0) is None
    assert (other.is_loaded, other.users, other.model.times_closed) == (True, 1, 0)


def test_a_model_that_all_callers_stopped_waiting_for_stays_in_the_cache() -> None:
    loads: list[Callable[[], object]] = []
    cache = ModelCache(StubModel, loads.append)
    cache.release(cache.acquire(1))
    assert cache.entries() == []
    loads.pop()()
    (entry,) = cache.entries()
    assert (entry.key, entry.users, entry.model.times_closed) == (1, 0, 0)
    cache.retire_unused(0)
    loads.pop()()
    assert entry.model.times_closed == 1


def test_models_that_are_being_loaded_are_not_retired() -> None:
    loads: list[Callable[[], object]] = []
    cache = ModelCache(StubModel, loads.append)
    entry = cache.acquire(1)
    cache.release(entry)
    cache.retire_unused(0)
    assert not entry.retired
    assert cache.acquire(1) is entry
    assert len(loads) == 1


def test_closing_the_cache_during_a_load_fails_its_callers_and_closes_the_model_later() -> None:
    loads: list[Callable[[], object]] = []
    models: list[StubModel] = []

    def load(key: int) -> StubModel:
        models.append(StubModel(key))
        return models[-1]

    cache = ModelCache(load, loads.append)
    entry = cache.acquire(1)
    cache.close(Unavailable("closed"))
    with pytest.raises(Unavailable, match="closed"):
        entry.load.result(0)
    loads.pop()()
    assert [model.times_closed for model in models] == [1]
    assert not entry.is_loaded
    cache.release(entry)
    assert [model.times_closed for model in models] == [1]
    assert (cache.entries(), loads) == ([], [])


def test_a_load_that_fails_after_the_cache_was_closed_is_reported_as_closed() -> None:
    loads: list[Callable[[], object]] = []

    def fail(key: int) -> StubModel:
        raise Unavailable("broken")

    cache = ModelCache(fail, loads.append)
    entry = cache.acquire(1)
    cache.close(Unavailable("closed"))
    loads.pop()()
    with pytest.raises(Unavailable, match="closed"):
        entry.load.result(0)


def test_a_cache_that_is_closed_during_the_eviction_after_a_load_fails_the_callers() -> None:
    def close(entry: CacheEntry[StubModel]) -> None:
        cache.close(Unavailable("closed"))

    cache = ModelCache(StubModel, after_load=close)
    entry = cache.acquire(1)
    with pytest.raises(Unavailable, match="closed"):
        entry.load.result(0)
    cache.release(entry)
    assert entry.model.times_closed == 1


def test_an_evicted_model_is_loaded_before_its_callers_continue() -> None:
    """An eviction in another thread may retire the model before those that wait for it use it."""

    def retire(entry: CacheEntry[StubModel]) -> None:
        assert not entry.load.done()
        assert entry.is_loaded
        cache.retire(entry)

    cache = ModelCache(StubModel, after_load=retire)
    entry = cache.acquire(1)
    entry.load.result(0)
    assert entry.model.times_closed == 0
    cache.release(entry)
    assert entry.model.times_closed == 1


def test_entries_and_their_users_change_only_under_the_lock() -> None:
    class GuardedEntries(OrderedDict[int, Any]):
        def __setitem__(self, key: int, value: Any) -> None:
            assert cache._lock.locked()
            value.__class__ = GuardedEntry
            super().__setitem__(key, value)

        def __delitem__(self, key: int) -> None:
            assert cache._lock.locked()
            super().__delitem__(key)

        def move_to_end(self, key: int, last: bool = True) -> None:
            assert cache._lock.locked()
            super().move_to_end(key, last)

        def values(self) -> Any:
            assert cache._lock.locked()
            return super().values()

    class GuardedEntry(CacheEntry[StubModel]):
        def __setattr__(self, name: str, value: object) -> None:
            assert cache._lock.locked(), name
            super().__setattr__(name, value)

    cache = ModelCache(StubModel)
    cache._entries = GuardedEntries()
    used, retired, unused = (cache.acquire(key) for key in (1, 2, 3))
    cache.retire(retired)
    cache.release(retired)
    cache.release(unused)
    cache.retire_unused(0)
    assert cache.entries() == [used]
    cache.close(Unavailable("closed"))
    cache.release(used)
    assert [entry.model.times_closed for entry in (used, retired, unused)] == [1, 1, 1]
