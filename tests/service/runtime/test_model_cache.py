"""The cache of loaded models that the server's pool and the worker's lanes share."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

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
