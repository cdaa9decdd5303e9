"""Models in the server's memory: shared loads, eviction under a limit, version changes under load."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.errors import Unavailable
from service.config import Settings
from service.runtime.loading import LoadedModel
from service.runtime.pool import Pool
from tests.service.api import Api, check_problem, running_app
from tests.service.estimators import KILL_VALUE, SLEEP_OFFSET

pytestmark = pytest.mark.anyio

ROW = {"x0": 2.0, "x1": 0.0, "x2": 0.0}
FIRST_SPARE_OTHER = (("flag", 1), ("flag", 2), ("forest", 1))
NUMERIC = ("forest", "ridge", "two-labels", "price", "two-prices", "groups", "outliers", "ranks")


def slow_row(seconds: float) -> dict[str, float]:
    """A row that the model `sleeper` answers after `seconds`."""
    return ROW | {"x0": SLEEP_OFFSET + seconds}


def loaded(api: Api) -> dict[str, LoadedModel]:
    return {f"{m.name}:{m.number}": m for m in api.services.pool.loaded()}


def users(api: Api, name: str) -> int:
    """The number of requests that use or wait for a loaded version."""
    entries = api.services.pool._cache.entries()
    return next(e.users for e in entries if f"{e.model.name}:{e.model.number}" == name)


async def wait_until(condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
    """Wait on the event loop until `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_champions_are_loaded_at_start_and_others_are_not(home: Path):
    async with running_app(Settings(home=home)) as api:
        await wait_until(lambda: len(loaded(api)) == 11)
        assert "flag:1" in loaded(api)
        assert "flag:2" not in loaded(api)


async def test_concurrent_requests_share_the_first_load(home: Path):
    async with running_app(Settings(home=home)) as api:
        loads: list[int] = []
        load = api.services.pool._load

        def counted(version_id: int) -> LoadedModel:
            loads.append(version_id)
            return load(version_id)

        api.services.pool._load = counted
        path = "/v1/models/flag/versions/2/predict"
        answers = await asyncio.gather(*(api.client.post(path, json={"instances": [ROW]}) for _ in range(20)))
        assert {a.status_code for a in answers} == {200}
        assert "flag:2" in loaded(api)
        assert loads.count(api.services.snapshot.resolve("flag", number=2).id) == 1


async def test_eviction_takes_the_least_recently_used_and_closes_no_version_in_use(home: Path):
    async with running_app(Settings(home=home)) as api:
        pool = api.services.pool
        await wait_until(lambda: len(loaded(api)) == 11)
        sleeper = loaded(api)["sleeper:1"]
        call = asyncio.create_task(api.predict("sleeper", slow_row(0.5)))
        await wait_until(lambda: users(api, "sleeper:1") == 1)
        pool._limit = 0
        second = await api.client.post("/v1/models/flag/versions/2/predict", json={"instances": [ROW]})
        assert second.status_code == 200
        assert set(loaded(api)) == {"flag:2"}  # the version loaded last stays, whatever its size
        assert (await call).json()["predictions"] == [{"value": SLEEP_OFFSET + 0.5}]
        await wait_until(lambda: sleeper.runtime.pid is None)  # closed after its last request


async def test_a_limit_of_two_models_serves_every_model(home: Path):
    async with running_app(Settings(home=home)) as api:
        await wait_until(lambda: len(loaded(api)) == 11)
        each = max(m.runtime.bytes for m in loaded(api).values() if m.kind == "onnx")
        api.services.pool._limit = 2 * each
        api.services.pool.keep_only({})
        assert api.services.pool.bytes == 0
        answers = await asyncio.gather(*(api.predict(n, ROW) for n in NUMERIC * 6))
        assert [a.json()["model"]["name"] for a in answers] == list(NUMERIC * 6)
        assert sum(m.runtime.bytes for m in loaded(api).values() if m.kind == "onnx") <= 2 * each


async def test_champions_that_do_not_fit_are_not_loaded_again_and_again(home: Path):
    async with running_app(Settings(home=home)) as api:
        await wait_until(lambda: len(loaded(api)) == 11)
        pool = api.services.pool
        pool._limit = max(m.runtime.bytes for m in loaded(api).values() if m.kind == "onnx")
        pool.keep_only({})
        champions = [v.id for v in api.services.snapshot.champions()]
        loads: list[int] = []
        load = pool._load
        pool._load = lambda version_id: loads.append(version_id) or load(version_id)  # type: ignore[func-returns-value]
        await pool.warm(champions)
        assert 0 < len(loads) < len(champions)


class FakeModel:
    fallback: str | None = None

    """The attributes of a `LoadedModel` that the pool uses."""

    def __init__(self, number: int) -> None:
        self.name, self.number, self.kind = "m", number, "onnx"
        self.runtime = self
        self.bytes = 10
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


async def test_a_version_evicted_before_its_first_request_uses_it_is_not_closed():
    pool = Pool(FakeModel, 10)  # type: ignore[arg-type]
    try:
        for numbers in itertools.permutations(range(4)):
            entries = await asyncio.gather(*(pool.acquire(n) for n in numbers))
            assert [e.model.number for e in entries] == list(numbers)
            assert not any(e.model.closed.is_set() for e in entries)  # type: ignore[attr-defined]
            for entry in entries:
                pool.release(entry)
    finally:
        await pool.close()


def fake_pool(limit_bytes: int, load: Callable[[int], Any] = FakeModel) -> Pool:
    return Pool(load, limit_bytes)


@pytest.mark.parametrize("ticks", [0, 1, 2])
async def test_a_request_cancelled_when_its_load_ends_keeps_no_hold_of_the_model(ticks: int):
    """The load ends in another thread. Its future is done one tick later; the request continues in the next.

    A request that is cancelled in between gets the cancellation although the model is loaded.
    """
    gate, notified = threading.Event(), threading.Event()

    def slow(version_id: int) -> FakeModel:
        gate.wait(10)
        return FakeModel(version_id)

    pool, loop = fake_pool(10, slow), asyncio.get_running_loop()
    waiting = asyncio.create_task(pool.acquire(1))
    await asyncio.sleep(0)
    (entry,) = pool._cache._entries.values()
    entry.load.add_done_callback(lambda _: notified.set())  # after the callback that the request waits for
    if ticks == 0:
        waiting.cancel()
    gate.set()
    assert notified.wait(10)  # blocks the event loop: nothing has run in it since the load ended
    if ticks == 1:
        loop.call_soon(waiting.cancel)
    if ticks == 2:
        loop.call_soon(loop.call_soon, waiting.cancel)
    (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
    if ticks < 2:
        assert isinstance(outcome, asyncio.CancelledError)
    else:
        assert outcome is entry
        pool.release(entry)
    assert (entry.is_loaded, entry.users) == (True, 0)
    pool.keep_only({})
    assert await asyncio.to_thread(entry.model.closed.wait, 10)  # type: ignore[attr-defined]
    await pool.close()


async def test_a_cancelled_request_does_not_cancel_the_load_of_others():
    gate = threading.Event()

    def slow(version_id: int) -> FakeModel:
        gate.wait(10)
        return FakeModel(version_id)

    pool = fake_pool(10, slow)
    cancelled, other = (asyncio.create_task(pool.acquire(1)) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    gate.set()
    entry = await other
    assert (entry.model.number, entry.users) == (1, 1)
    await pool.close()


async def test_a_failed_load_keeps_no_user_and_no_entry():
    def fail(version_id: int) -> Any:
        raise ValueError("a bad file")

    pool = fake_pool(10, fail)
    entries = []
    acquire = pool._cache.acquire
    pool._cache.acquire = lambda key: entries.append(acquire(key)) or entries[-1]  # type: ignore[method-assign,func-returns-value]
    with pytest.raises(Unavailable, match="could not be loaded: a bad file"):
        await pool.get(1)
    assert [entry.users for entry in entries] == [0]
    assert pool._cache._entries == {}
    await pool.close()


async def test_a_loaded_model_without_a_request_has_no_user():
    pool = fake_pool(10)
    model = await pool.get(1)
    (entry,) = pool._cache.entries()
    assert (entry.model, entry.users) == (model, 0)
    await pool.close()


async def test_the_least_recently_used_models_are_evicted_until_the_others_fit():
    pool = fake_pool(20)
    models = [await pool.get(1), await pool.get(2)]
    assert pool.bytes == 20  # exactly the limit
    await pool.get(1)
    await pool.get(3)
    assert [model.number for model in pool.loaded()] == [1, 3]
    assert await asyncio.to_thread(models[1].closed.wait, 10)  # type: ignore[attr-defined]
    assert not models[0].closed.is_set()  # type: ignore[attr-defined]
    pool._limit = 5
    await pool.get(4)  # larger than the limit, and the only one that stays
    assert [model.number for model in pool.loaded()] == [4]
    pool.keep_only({4: None})
    assert [model.number for model in pool.loaded()] == [4]
    await pool.close()


async def test_a_model_that_is_still_loading_is_not_evicted():
    gate, loading = threading.Event(), threading.Event()

    def load(version_id: int) -> FakeModel:
        if version_id == 1:
            loading.set()
            gate.wait(10)
        return FakeModel(version_id)

    pool = fake_pool(5, load)
    waiting = asyncio.create_task(pool.acquire(1))
    assert await asyncio.to_thread(loading.wait, 10)
    await pool.get(2)
    pool.keep_only({})
    assert pool.loaded() == []
    gate.set()
    entry = await waiting
    assert (entry.retired, entry.users) == (False, 1)
    assert not entry.model.closed.is_set()  # type: ignore[attr-defined]
    pool.release(entry)
    await pool.close()


async def test_a_version_whose_fallback_changes_during_its_load_is_loaded_again():
    gate, loading = threading.Event(), threading.Event()

    def load(version_id: int) -> FakeModel:
        model = FakeModel(version_id)
        if not loading.is_set():
            loading.set()
            gate.wait(10)
        else:
            model.fallback = "isolated"
        return model

    pool = fake_pool(100, load)
    pool.keep_only({1: None})
    waiting = asyncio.create_task(pool.acquire(1))
    assert await asyncio.to_thread(loading.wait, 10)
    pool.keep_only({1: "isolated"})
    gate.set()
    entry = await waiting
    assert pool.loaded() == []
    pool.release(entry)
    assert await asyncio.to_thread(entry.model.closed.wait, 10)  # type: ignore[attr-defined]
    assert (await pool.get(1)).fallback == "isolated"
    assert len(pool.loaded()) == 1
    await pool.close()


async def test_one_eviction_at_a_time_measures_the_memory():
    """Two loads that end together would both see the excess, and evict twice."""
    pool = fake_pool(10)
    unload, calls = pool._unload, []

    def recorded(entry: Any) -> None:
        calls.append(pool._evicting.locked())
        unload(entry)

    pool._unload = recorded  # type: ignore[method-assign]
    await asyncio.gather(*(pool.get(number) for number in range(4)))
    assert calls == [True] * 3
    assert len(pool.loaded()) == 1
    await pool.close()


async def test_warming_stops_at_the_first_load_that_evicts_another():
    loads: list[int] = []

    def load(version_id: int) -> FakeModel:
        loads.append(version_id)
        if version_id == 2:
            raise Unavailable("not today")
        return FakeModel(version_id)

    pool = fake_pool(20, load)
    await pool.get(1)
    await pool.warm([1, 2, 3, 4, 5])  # 1 is loaded, 2 fails, 3 fits, 4 evicts 1
    assert loads == [1, 2, 3, 4]
    assert [model.number for model in pool.loaded()] == [3, 4]
    assert pool.count_by_runtime()["onnx"] == 2
    await pool.close()


async def test_a_failed_load_is_reported_to_all_waiting_requests_and_tried_again_by_the_next():
    calls: list[int] = []
    gate = threading.Event()

    def fail(version_id: int) -> LoadedModel:
        gate.wait(10)
        calls.append(version_id)
        raise Unavailable("not today")

    pool = Pool(fail, 10)
    waiting = [asyncio.create_task(pool.acquire(1)) for _ in range(5)]
    await asyncio.sleep(0)  # all five wait for the same load
    gate.set()
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(e) for e in errors] == ["not today"] * 5
    with pytest.raises(Unavailable):
        await pool.acquire(1)
    assert calls == [1, 1]
    await pool.close()


async def test_closing_the_pool_closes_a_load_that_finishes_later():
    gate, loading, model = threading.Event(), threading.Event(), FakeModel(1)

    def slow(version_id: int) -> Any:
        loading.set()
        gate.wait(10)
        return model

    pool = Pool(slow, 10)
    waiting = asyncio.create_task(pool.acquire(1))
    assert await asyncio.to_thread(loading.wait, 10)
    waiting.cancel()
    await pool.close()
    assert not model.closed.is_set()
    gate.set()
    assert await asyncio.to_thread(model.closed.wait, 10)


async def test_closing_the_pool_fails_the_requests_that_wait_for_a_load():
    gate, model = threading.Event(), FakeModel(1)

    def slow(version_id: int) -> Any:
        gate.wait(10)
        return model

    pool = Pool(slow, 10)
    waiting = asyncio.create_task(pool.acquire(1))
    await asyncio.sleep(0.05)
    await pool.close()
    with pytest.raises(Unavailable, match="shutting down"):
        await waiting
    gate.set()
    assert await asyncio.to_thread(model.closed.wait, 10)
    with pytest.raises(Unavailable, match="shutting down"):
        await pool.acquire(2)


async def test_moving_an_alias_under_load_drops_no_request_and_gives_no_wrong_answer(home: Path):
    async with running_app(Settings(home=home)) as api:
        allowed = {1}  # versions that the alias may answer with now: the old one, the new one, or both
        stop = asyncio.Event()
        calls = 0

        async def predict() -> None:
            nonlocal calls
            while not stop.is_set():
                before = set(allowed)
                answer = await api.predict("flag", ROW)
                assert answer.status_code == 200, answer.text
                body = answer.json()
                version = body["model"]["version"]
                assert version in before | allowed
                assert body["predictions"][0]["label"] == {1: "yes", 2: "no"}[version]
                calls += 1
                await asyncio.sleep(0)  # where a server would wait for its socket

        async def move() -> None:
            for version in [2, 1] * 10:
                allowed.add(version)
                await api.promote("flag", version)
                allowed.intersection_update({version})
                assert (await api.predict("flag", ROW)).json()["model"]["version"] == version
            stop.set()

        await asyncio.gather(move(), *(predict() for _ in range(8)))
        assert calls > 100


async def test_a_promotion_loads_the_version_before_the_alias_moves(home: Path):
    async with running_app(Settings(home=home)) as api:
        await api.promote("flag", 2)
        assert "flag:2" in loaded(api)


async def test_an_archived_version_is_unloaded(home: Path):
    async with running_app(Settings(home=home)) as api:
        await api.client.post("/v1/models/flag/versions/2/predict", json={"instances": [ROW]})
        await api.client.patch("/v1/models/flag/versions/2", json={"archived": True})
        await wait_until(lambda: "flag:2" not in loaded(api))


@pytest.fixture
async def short_deadline(home: Path):
    """A server with a deadline of 0.6 s per call."""
    async with running_app(Settings(home=home, predict_deadline_s=0.6)) as api:
        await wait_until(lambda: "sleeper:1" in loaded(api))
        yield api


async def test_an_isolated_model_beyond_its_deadline_is_504_and_is_replaced(short_deadline: Api):
    first = loaded(short_deadline)["sleeper:1"].runtime.pid
    assert "0.6 s" in check_problem(await short_deadline.predict("sleeper", slow_row(30)), 504)["detail"]
    assert loaded(short_deadline)["sleeper:1"].runtime.pid != first
    answers = [await short_deadline.predict("sleeper", ROW) for _ in range(20)]
    assert answers[-1].json()["predictions"] == [{"value": 2.0}]


async def test_calls_that_wait_behind_a_slow_call_get_504_at_their_own_deadline(short_deadline: Api):
    start = time.monotonic()
    answers = await asyncio.gather(*(short_deadline.predict("sleeper", slow_row(30)) for _ in range(6)))
    assert {a.status_code for a in answers} == {504}
    assert time.monotonic() - start < 3


async def test_an_isolated_model_that_is_killed_is_replaced(home: Path):
    async with running_app(Settings(home=home)) as api:
        await wait_until(lambda: "sleeper:1" in loaded(api))
        runtime = loaded(api)["sleeper:1"].runtime
        check_problem(await api.predict("sleeper", ROW | {"x0": KILL_VALUE}), 503)
        answer = await api.predict("sleeper", ROW)
        assert answer.status_code == 200, answer.text
        assert answer.json()["predictions"] == [{"value": 2.0}]
        os.kill(runtime.pid, signal.SIGKILL)
        assert (await api.predict("sleeper", ROW)).status_code in (200, 503)
        assert (await api.predict("sleeper", ROW)).status_code == 200


async def test_a_busy_isolated_model_delays_neither_the_event_loop_nor_other_models(home: Path):
    async with running_app(Settings(home=home)) as api:
        await wait_until(lambda: "sleeper:1" in loaded(api))
        calls = [
            asyncio.create_task(api.predict("sleeper", slow_row(2.0 if n == 0 else 0))) for n in range(6)
        ]
        await wait_until(lambda: users(api, "sleeper:1") == 6)
        slowest = 0.0
        while not calls[0].done():
            start = time.perf_counter()
            assert (await api.anonymous.get("/livez")).status_code == 200
            csv = b"x0,x1,x2\n2,0,0\n"  # decoded in a worker thread
            answer = await api.client.post(
                "/v1/models/price/predict", content=csv, headers={"Content-Type": "text/csv"}
            )
            assert answer.status_code == 200
            slowest = max(slowest, time.perf_counter() - start)
            await asyncio.sleep(0.01)
        assert slowest < 1.5  # allows for a machine busy with other tests; a blocked loop would take 2
        assert [c.status_code for c in await asyncio.gather(*calls)] == [200] * 6


async def test_a_slow_load_delays_no_other_load(home: Path):
    async with running_app(Settings(home=home)) as api:
        gate, loading = threading.Event(), threading.Event()
        load = api.services.pool._load
        slow = api.services.snapshot.resolve("flag", number=2).id

        def gated(version_id: int) -> LoadedModel:
            if version_id == slow:
                loading.set()
                gate.wait(10)
            return load(version_id)

        api.services.pool._load = gated
        path = "/v1/models/flag/versions/2/predict"
        waiting = asyncio.create_task(api.client.post(path, json={"instances": [ROW]}))
        await wait_until(loading.is_set)
        assert (await api.predict("price", ROW)).status_code == 200
        assert not waiting.done()
        gate.set()
        assert (await waiting).status_code == 200


async def test_metrics_can_be_read_while_models_are_loaded_and_evicted(home: Path):
    async with running_app(Settings(home=home)) as api:
        api.services.pool._limit = 1
        predictions = [api.predict(n, ROW) for n in NUMERIC * 3]
        metrics = [api.client.get("/metrics") for _ in predictions]
        answers = await asyncio.gather(
            *(call for pair in zip(predictions, metrics, strict=True) for call in pair)
        )
        assert {a.status_code for a in answers} == {200}


async def test_a_spare_version_takes_no_memory_from_others(api: Api):
    snapshot = api.services.snapshot
    first, spare, other = (snapshot.resolve(name, number=n).id for name, n in FIRST_SPARE_OTHER)
    pool = Pool(api.services.pool._load, 1 << 40)
    size = (await pool.get(other)).runtime.bytes
    pool.keep_only({})
    await pool.get(first)
    await pool.load_spare(spare)
    pool._limit = pool.bytes
    with pytest.raises(Unavailable, match="does not fit into the memory"):
        await pool.load_spare(other)
    assert [f"{m.name}:{m.number}" for m in pool.loaded()] == ["flag:1", "flag:2"]
    pool._limit = pool.bytes + size - 1
    await pool.get(other)  # evicts the spare version, although the first one was used earlier
    assert [f"{m.name}:{m.number}" for m in pool.loaded()] == ["flag:1", "forest:1"]
    await pool.close()


async def test_a_spare_version_that_is_used_is_spare_no_longer(api: Api):
    snapshot = api.services.snapshot
    first, spare, other = (snapshot.resolve(name, number=n).id for name, n in FIRST_SPARE_OTHER)
    pool = Pool(api.services.pool._load, 1 << 40)
    await pool.get(first)
    await pool.load_spare(spare)
    await pool.warm([spare])
    pool._limit = pool.bytes
    await pool.get(other)
    assert "flag:1" not in [f"{m.name}:{m.number}" for m in pool.loaded()]
    await pool.close()
