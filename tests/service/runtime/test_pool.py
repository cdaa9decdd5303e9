"""Models in memory: shared loads, eviction under a bound, swaps under load, isolated ones in nobody's way."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from registry.errors import Unavailable
from service.config import Settings
from service.runtime.loading import Loaded
from service.runtime.pool import Pool
from tests.service.api import Api, refused, running
from tests.service.estimators import DEATH, NAP

pytestmark = pytest.mark.anyio

ROW = {"x0": 2.0, "x1": 0.0, "x2": 0.0}
NUMERIC = ("forest", "ridge", "two-labels", "price", "two-prices", "groups", "odd-ones", "ranks")


def nap(seconds: float) -> dict[str, float]:
    return ROW | {"x0": NAP + seconds}


def loaded(api: Api) -> dict[str, Loaded]:
    return {f"{m.name}:{m.number}": m for m in api.services.pool._models.values()}


async def until(found: Any, within_s: float = 30.0) -> None:
    """Wait, on the event loop, for what other tasks are about to do."""
    deadline = time.monotonic() + within_s
    while not found():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_champions_are_loaded_at_start_and_others_are_not(home: Path):
    async with running(Settings(home=home)) as api:
        await until(lambda: len(loaded(api)) == 11)
        assert "flag:1" in loaded(api)
        assert "flag:2" not in loaded(api)


async def test_requests_at_once_share_the_first_load(home: Path):
    async with running(Settings(home=home)) as api:
        loads: list[int] = []
        load = api.services.pool._load

        def counted(version_id: int) -> Loaded:
            loads.append(version_id)
            return load(version_id)

        api.services.pool._load = counted
        path = "/v1/models/flag/versions/2/predict"
        answers = await asyncio.gather(*(api.client.post(path, json={"instances": [ROW]}) for _ in range(20)))
        assert {a.status_code for a in answers} == {200}
        second = loaded(api)["flag:2"]
        assert loads.count(next(i for i, m in api.services.pool._models.items() if m is second)) == 1


async def test_the_least_recently_used_goes_first_and_none_goes_that_is_in_use(home: Path):
    async with running(Settings(home=home)) as api:
        pool = api.services.pool
        await until(lambda: len(loaded(api)) == 11)
        naps = loaded(api)["naps:1"]
        call = asyncio.create_task(api.predict("naps", nap(0.5)))
        await until(lambda: naps.users == 1)
        pool._limit = 0
        second = await api.client.post("/v1/models/flag/versions/2/predict", json={"instances": [ROW]})
        assert second.status_code == 200
        assert set(loaded(api)) == {"flag:2"}  # what was just loaded stays, whatever it takes
        assert naps.retired
        assert (await call).json()["predictions"] == [{"value": NAP + 0.5}]
        await until(lambda: naps.runtime.pid is None)  # closed when its last request was done


async def test_a_bound_that_holds_two_models_answers_for_all(home: Path):
    async with running(Settings(home=home)) as api:
        await until(lambda: len(loaded(api)) == 11)
        each = max(m.runtime.bytes for m in loaded(api).values() if m.kind == "onnx")
        api.services.pool._limit = 2 * each
        api.services.pool.keep(set())
        assert api.services.pool.bytes == 0
        answers = await asyncio.gather(*(api.predict(n, ROW) for n in NUMERIC * 6))
        assert [a.json()["model"]["name"] for a in answers] == list(NUMERIC * 6)
        assert sum(m.runtime.bytes for m in loaded(api).values() if m.kind == "onnx") <= 2 * each


async def test_champions_that_do_not_fit_are_not_loaded_round_and_round(home: Path):
    async with running(Settings(home=home)) as api:
        await until(lambda: len(loaded(api)) == 11)
        pool = api.services.pool
        pool._limit = max(m.runtime.bytes for m in loaded(api).values() if m.kind == "onnx")
        pool.keep(set())
        champions = [v.id for v in api.services.snapshot.champions()]
        loads: list[int] = []
        load = pool._load
        pool._load = lambda version_id: loads.append(version_id) or load(version_id)  # type: ignore[func-returns-value]
        await pool.warm(champions)
        assert 0 < len(loads) < len(champions)


async def test_a_version_evicted_before_its_first_request_takes_it_is_not_closed():
    class Made:
        """What the pool asks of a loaded version."""

        def __init__(self, number: int) -> None:
            self.name, self.number, self.kind, self.users, self.retired = "m", number, "onnx", 0, False
            self.runtime = self
            self.bytes = 10
            self.closed = False

        def close(self) -> None:
            self.closed = True

    pool = Pool(Made, 10)  # type: ignore[arg-type]
    try:
        for numbers in itertools.permutations(range(4)):
            taken = await asyncio.gather(*(pool.take(n) for n in numbers))
            assert [m.number for m in taken] == list(numbers)
            assert not any(m.closed for m in taken)  # type: ignore[attr-defined]
            for model in taken:
                pool.release(model)
    finally:
        await pool.close()


async def test_a_load_that_fails_is_told_to_all_who_wait_and_tried_again_by_the_next():
    calls: list[int] = []

    def fail(version_id: int) -> Loaded:
        calls.append(version_id)
        raise Unavailable("not today")

    pool = Pool(fail, 10)
    found = await asyncio.gather(*(pool.take(1) for _ in range(5)), return_exceptions=True)
    assert [str(e) for e in found] == ["not today"] * 5
    with pytest.raises(Unavailable):
        await pool.take(1)
    assert calls == [1, 1]
    await pool.close()


async def test_closing_ends_a_load_that_nobody_waits_for_any_more():
    gate, closed = threading.Event(), threading.Event()

    class Late:
        def close(self) -> None:
            closed.set()

    def slow(version_id: int) -> Any:
        gate.wait(10)
        return Late()

    pool = Pool(slow, 10)
    waiting = asyncio.create_task(pool.take(1))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await pool.close()
    assert not closed.is_set()
    gate.set()
    assert await asyncio.to_thread(closed.wait, 10)  # what came too late is closed all the same


async def test_an_alias_moves_under_load_without_a_dropped_or_a_wrong_answer(home: Path):
    async with running(Settings(home=home)) as api:
        pointed = {1}  # what the alias may answer with at the moment: the old, the new, or both
        stop = asyncio.Event()
        asked = 0

        async def ask() -> None:
            nonlocal asked
            while not stop.is_set():
                before = set(pointed)
                answer = await api.predict("flag", ROW)
                assert answer.status_code == 200, answer.text
                body = answer.json()
                version = body["model"]["version"]
                assert version in before | pointed
                assert body["predictions"][0]["label"] == {1: "yes", 2: "no"}[version]
                asked += 1
                await asyncio.sleep(0)  # where a server would wait for its socket

        async def move() -> None:
            for version in [2, 1] * 10:
                pointed.add(version)
                await api.promote("flag", version)
                pointed.intersection_update({version})
                assert (await api.predict("flag", ROW)).json()["model"]["version"] == version
            stop.set()

        await asyncio.gather(move(), *(ask() for _ in range(8)))
        assert asked > 100


async def test_a_promotion_loads_the_version_before_the_alias_moves(home: Path):
    async with running(Settings(home=home)) as api:
        await api.promote("flag", 2)
        assert "flag:2" in loaded(api)


async def test_what_is_archived_or_deleted_leaves_memory(home: Path):
    async with running(Settings(home=home)) as api:
        await api.client.post("/v1/models/flag/versions/2/predict", json={"instances": [ROW]})
        await api.client.patch("/v1/models/flag/versions/2", json={"archived": True})
        await until(lambda: "flag:2" not in loaded(api))


@pytest.fixture
async def hasty(home: Path):
    """Isolated models have 0.6 s per call."""
    async with running(Settings(home=home, predict_deadline_s=0.6)) as api:
        await until(lambda: "naps:1" in loaded(api))
        yield api


async def test_an_isolated_model_that_is_late_is_504_and_comes_back(hasty: Api):
    first = loaded(hasty)["naps:1"].runtime.pid
    assert "0.6 s" in refused(await hasty.predict("naps", nap(30)), 504)["detail"]
    assert loaded(hasty)["naps:1"].runtime.pid != first
    answers = [await hasty.predict("naps", ROW) for _ in range(20)]
    assert answers[-1].json()["predictions"] == [{"value": 2.0}]


async def test_whoever_waits_behind_a_late_call_is_told_in_time(hasty: Api):
    start = time.monotonic()
    answers = await asyncio.gather(*(hasty.predict("naps", nap(30)) for _ in range(6)))
    assert {a.status_code for a in answers} == {504}
    assert time.monotonic() - start < 3


async def test_an_isolated_model_that_is_killed_is_replaced(home: Path):
    async with running(Settings(home=home)) as api:
        await until(lambda: "naps:1" in loaded(api))
        runtime = loaded(api)["naps:1"].runtime
        refused(await api.predict("naps", ROW | {"x0": DEATH}), 503)
        answer = await api.predict("naps", ROW)
        assert answer.status_code == 200, answer.text
        assert answer.json()["predictions"] == [{"value": 2.0}]
        os.kill(runtime.pid, signal.SIGKILL)
        assert (await api.predict("naps", ROW)).status_code in (200, 503)
        assert (await api.predict("naps", ROW)).status_code == 200


async def test_a_busy_isolated_model_holds_up_neither_the_loop_nor_other_models(home: Path):
    async with running(Settings(home=home)) as api:
        await until(lambda: "naps:1" in loaded(api))
        busy = [asyncio.create_task(api.predict("naps", nap(2.0 if n == 0 else 0))) for n in range(6)]
        await until(lambda: loaded(api)["naps:1"].users == 6)
        slowest = 0.0
        while not busy[0].done():
            start = time.perf_counter()
            assert (await api.anonymous.get("/livez")).status_code == 200
            sheet = b"x0,x1,x2\n2,0,0\n"  # decoded in a worker thread
            answer = await api.client.post(
                "/v1/models/price/predict", content=sheet, headers={"Content-Type": "text/csv"}
            )
            assert answer.status_code == 200
            slowest = max(slowest, time.perf_counter() - start)
            await asyncio.sleep(0.01)
        assert slowest < 1.5  # a machine busy with other tests; a held loop would take 2
        assert [c.status_code for c in await asyncio.gather(*busy)] == [200] * 6


async def test_a_load_that_takes_long_holds_up_no_other_load(home: Path):
    async with running(Settings(home=home)) as api:
        gate = threading.Event()
        load = api.services.pool._load
        slow = api.services.snapshot.resolve("flag", number=2).id

        def gated(version_id: int) -> Loaded:
            if version_id == slow:
                gate.wait(10)
            return load(version_id)

        api.services.pool._load = gated
        path = "/v1/models/flag/versions/2/predict"
        waiting = asyncio.create_task(api.client.post(path, json={"instances": [ROW]}))
        await until(lambda: slow in api.services.pool._loading)
        assert (await api.predict("price", ROW)).status_code == 200
        assert not waiting.done()
        gate.set()
        assert (await waiting).status_code == 200


async def test_figures_may_be_read_while_models_come_and_go(home: Path):
    async with running(Settings(home=home)) as api:
        api.services.pool._limit = 1
        asks = [api.predict(n, ROW) for n in NUMERIC * 3]
        figures = [api.client.get("/metrics") for _ in asks]
        answers = await asyncio.gather(*(c for pair in zip(asks, figures, strict=True) for c in pair))
        assert {a.status_code for a in answers} == {200}
