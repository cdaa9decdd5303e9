"""Queues of model calls: joint calls, bounds, and callers that leave. Calls in threads end on request."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.errors import DeadlineExceeded, Invalid, Overloaded, Unavailable
from registry.rows import Outputs, Rows
from registry.signature import Input, Output, Signature
from registry.vocabulary import Runtime
from service import telemetry
from service.online import batching
from service.online.batching import ModelQueues
from service.runtime.call_cost import CallCost
from service.runtime.isolated_runtime import CallFailed, RestartPending
from service.runtime.loading import LoadedModel

SIGNATURE = Signature("regression", (Input("x", "float64"),), (Output("value", "float64", (-1,)),))
HEAVY = CallCost(fixed_s=0.004, row_s=0.001)
"""Up to 10 rows are joined, and no call runs on the event loop."""
KILL, FAIL = 666.0, 667.0


class Doubling:
    """Doubles its feature. Refuses negative numbers; `KILL` and `FAIL` fail the call. Records its calls."""

    bytes = 0

    def __init__(self) -> None:
        self.calls: list[list[float]] = []

    def run(self, rows: Rows) -> Outputs:
        assert rows.matrix is not None
        values = rows.matrix[:, 0].tolist()
        self.calls.append(values)
        if min(values) < 0:
            raise Invalid("the model refuses these rows: a negative number")
        if KILL in values:
            raise CallFailed("the model's process ended during the call")
        if FAIL in values:
            raise MemoryError
        return {"value": 2 * rows.matrix[:, 0]}

    def close(self) -> None:
        pass


class ManualThreads:
    """An executor whose calls run when a test calls `end`."""

    def __init__(self) -> None:
        self.started: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.started.append((future, lambda: function(*args)))
        return future

    def end(self, index: int = 0) -> None:
        future, call = self.started.pop(index)
        future.set_result(call())


class Site:
    """One loaded model with a queue."""

    def __init__(self, cost: CallCost = HEAVY, kind: Runtime = "onnx", slots: int = 1) -> None:
        self.runtime, self.threads, self.queues = Doubling(), ManualThreads(), ModelQueues()
        self.loaded = LoadedModel("queued", 1, kind, SIGNATURE, self.runtime)
        self.loaded.threads = cast(Any, self.threads)
        self.loaded.set_cost(cost)
        self.loaded.slots = slots
        self.runtime.calls.clear()

    def call(
        self, *values: float, seconds: float = 60.0, departure: Callable[[], Awaitable[object]] | None = None
    ) -> asyncio.Task[list[float]]:
        async def run() -> list[float]:
            rows = Rows(matrix=np.array(values, dtype=float)[:, None])
            outputs = await self.queues.run(self.loaded, rows, time.monotonic() + seconds, departure)
            answers: list[float] = outputs["value"].tolist()
            return answers

        return asyncio.get_running_loop().create_task(run())

    async def end(self) -> None:
        """End all calls that run in threads, and those that start then."""
        await turns()
        while self.threads.started:
            self.threads.end()
            await turns()

    @property
    def waiting(self) -> int:
        return sum(len(queue._calls) for queue in self.queues._queues.values())


async def turns() -> None:
    """Let the event loop run what is ready."""
    for _ in range(4):
        await asyncio.sleep(0)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


pytestmark = pytest.mark.anyio


async def test_requests_of_one_turn_of_the_event_loop_are_one_call_in_their_order():
    site = Site()
    calls = [site.call(1, 2), site.call(3), site.call(4, 5)]
    await site.end()
    assert site.runtime.calls == [[1, 2, 3, 4, 5]]
    assert [await call for call in calls] == [[2, 4], [6], [8, 10]]


async def test_what_is_queued_when_a_slot_becomes_free_is_one_call():
    site = Site()
    first = site.call(1)
    await turns()
    others = []
    for value in (2, 3, 4):
        others.append(site.call(value))
        await turns()
    assert site.waiting == 3
    await site.end()
    assert site.runtime.calls == [[1], [2, 3, 4]]
    assert [await call for call in (first, *others)] == [[2], [4], [6], [8]]


async def test_a_joint_call_has_at_most_the_rows_that_the_cost_allows():
    site = Site()
    calls = [site.call(*range(n, n + 4)) for n in range(0, 24, 4)]
    await site.end()
    assert [len(values) for values in site.runtime.calls] == [8, 8, 8]
    assert [await call for call in calls] == [[2.0 * v for v in range(n, n + 4)] for n in range(0, 24, 4)]


async def test_a_request_of_many_rows_is_one_call():
    site = Site()
    call = site.call(*range(100))
    await site.end()
    assert [len(values) for values in site.runtime.calls] == [100]
    assert len(await call) == 100


async def test_requests_are_not_joined_where_that_saves_little():
    site = Site(CallCost(fixed_s=0.0001, row_s=0.01))
    calls = [site.call(n) for n in range(3)]
    await site.end()
    assert site.runtime.calls == [[0], [1], [2]]
    assert [await call for call in calls] == [[0], [2], [4]]


async def test_a_model_runs_as_many_calls_as_it_has_slots():
    site = Site(CallCost(0.0, 0.01), slots=2)
    calls = [site.call(n) for n in range(5)]
    await turns()
    assert (len(site.threads.started), site.waiting) == (2, 3)
    site.threads.end(1)
    await turns()
    assert (len(site.threads.started), site.waiting) == (2, 2)
    await site.end()
    assert sorted([(await call)[0] for call in calls]) == [0, 2, 4, 6, 8]


async def test_short_joint_calls_run_on_the_event_loop_also_while_all_slots_are_taken():
    site = Site(CallCost(fixed_s=0.0002, row_s=0.0001))  # up to 8 rows take less than 1 ms
    large = site.call(*range(50))
    await turns()
    assert len(site.threads.started) == 1
    small = [site.call(n) for n in range(12)]
    await turns()
    assert [await call for call in small] == [[2 * n] for n in range(12)]
    assert [len(values) for values in site.runtime.calls] == [8, 4]
    await site.end()
    assert len(await large) == 50


async def test_an_isolated_model_never_runs_on_the_event_loop():
    site = Site(CallCost(0.0002, 0.0001), kind="isolated")
    call = site.call(1)
    await turns()
    assert len(site.threads.started) == 1
    await site.end()
    assert await call == [2]


async def test_a_refused_request_fails_alone_and_its_rows_are_named():
    site = Site()
    calls = [site.call(1), site.call(2, -3), site.call(4)]
    await site.end()
    assert (await calls[0], await calls[2]) == ([2], [8])
    with pytest.raises(Invalid, match=r"^instance 1: the model refuses this row: a negative number"):
        await calls[1]


@pytest.mark.parametrize(("value", "error"), [(KILL, CallFailed), (FAIL, MemoryError)])
async def test_a_request_that_fails_the_call_fails_alone(value: float, error: type[Exception]):
    site = Site()
    calls = [site.call(1), site.call(value), site.call(3)]
    await site.end()
    assert (await calls[0], await calls[2]) == ([2], [6])
    with pytest.raises(error):
        await calls[1]


@pytest.mark.parametrize("delay_s", [0.02, 90.0])  # calls wait for the first, until 60 s
async def test_requests_beside_one_that_ends_the_process_wait_for_its_restart(delay_s: float):
    site = Site(kind="isolated")
    run, restarts_at = site.runtime.run, 0.0

    def restarting(rows: Rows) -> Outputs:
        nonlocal restarts_at
        if (wait_s := restarts_at - time.monotonic()) > 0:
            raise RestartPending(wait_s)
        try:
            return run(rows)
        except CallFailed:
            restarts_at = time.monotonic() + delay_s * (len(rows) == 1)  # the first restart is immediate
            raise

    cast(Any, site.runtime).run = restarting
    calls = [site.call(KILL), site.call(2), site.call(3)]
    await site.end()
    with pytest.raises(CallFailed):
        await calls[0]
    if delay_s < 60:
        assert (await calls[1], await calls[2]) == ([4], [6])
    else:
        for call in calls[1:]:
            with pytest.raises(RestartPending):
                await call


async def test_a_joint_call_beyond_the_deadline_is_not_repeated():
    site = Site()

    def slow(rows: Rows) -> Outputs:
        raise DeadlineExceeded("the model did not answer")

    cast(Any, site.runtime).run = slow
    calls = [site.call(1), site.call(2)]
    await site.end()
    for call in calls:
        with pytest.raises(DeadlineExceeded):
            await call


async def test_a_call_past_its_deadline_is_dropped_before_it_runs():
    site = Site()
    first = site.call(1)
    await turns()
    late, in_time = site.call(2, seconds=-1), site.call(3)
    await site.end()
    assert (await first, await in_time) == ([2], [6])
    assert site.runtime.calls == [[1], [3]]
    with pytest.raises(DeadlineExceeded):
        await late


async def test_a_cancelled_call_leaves_the_queue():
    site = Site()
    first = site.call(1)
    await turns()
    cancelled, other = site.call(2), site.call(3)
    await turns()
    cancelled.cancel()
    await turns()
    assert site.waiting == 1
    await site.end()
    assert (await first, await other) == ([2], [6])
    assert site.runtime.calls == [[1], [3]]


async def test_a_call_that_is_cancelled_as_a_slot_becomes_free_does_not_run():
    site = Site()
    first = site.call(1)
    await turns()
    cancelled, other = site.call(2), site.call(3)
    await turns()
    site.threads.end()
    cancelled.cancel()  # the slot's end is processed before the call has left the queue
    await site.end()
    assert (await first, await other) == ([2], [6])
    assert site.runtime.calls == [[1], [3]]


async def test_a_cancelled_call_is_not_repeated_alone():
    site = Site()
    calls = [site.call(1), site.call(-2), site.call(3)]
    await turns()
    calls[2].cancel()
    await site.end()
    assert await calls[0] == [2]
    assert [call for call in site.runtime.calls if len(call) == 1 and call[0] > 0] == [[1]]
    with pytest.raises(Invalid):
        await calls[1]


async def test_an_error_for_a_cancelled_caller_is_not_logged_as_lost():
    site, loop, reports = Site(), asyncio.get_running_loop(), list[Any]()
    loop.set_exception_handler(lambda _, report: reports.append(report))
    call = site.call(-1)
    await turns()
    site.threads.end()
    loop.call_soon(call.cancel)  # between the error and the next step of the caller
    await turns()
    assert call.cancelled()
    gc.collect()
    assert reports == []


async def test_a_caller_that_leaves_while_its_call_runs_frees_no_slot_and_fails_no_other():
    site = Site()
    leaving, staying = site.call(1), site.call(2)
    await turns()
    next_call = site.call(3)
    leaving.cancel()
    await turns()
    assert (len(site.threads.started), site.waiting) == (1, 1)
    await site.end()
    assert (await staying, await next_call) == ([4], [6])


async def test_departures_are_awaited_only_in_the_queue():
    site, watched = Site(), []

    async def departure() -> None:
        watched.append("begin")
        try:
            await asyncio.Event().wait()
        finally:
            watched.append("end")

    first = site.call(1, departure=departure)
    await turns()
    assert watched == []
    second = site.call(2, departure=departure)
    await turns()
    assert watched == ["begin"]
    await site.end()
    assert watched == ["begin", "end"]
    assert (await first, await second) == ([2], [4])


async def test_a_departure_ends_the_call_with_its_error():
    site, left = Site(), asyncio.Event()

    async def departure() -> None:
        await left.wait()
        raise ConnectionError("the client disconnected")

    first = site.call(1)
    await turns()
    second = site.call(2, departure=departure)
    await turns()
    left.set()
    await turns()
    with pytest.raises(ConnectionError):
        await second
    assert site.waiting == 0
    await site.end()
    assert await first == [2]
    assert site.runtime.calls == [[1]]


async def test_a_full_queue_refuses_calls_and_accepts_them_when_it_is_shorter():
    site = Site(CallCost(0.0, 0.3))
    calls = [site.call(1)]
    await turns()
    calls += [site.call(1) for _ in range(batching.MIN_QUEUE)]
    await turns()
    refused = site.call(1)
    await turns()
    assert refused.done()
    with pytest.raises(Overloaded, match="queued:1"):  # before its body is decoded
        site.queues.require_space(site.loaded)
    with pytest.raises(Overloaded, match=r"the model queued:1 is overloaded: 4 calls wait .* --workers"):
        await refused
    site.threads.end()
    await turns()
    accepted = site.call(2)
    await site.end()
    assert await accepted == [4]
    assert {(await call)[0] for call in calls} == {2}


@pytest.mark.parametrize("slots", [1, 2])
async def test_a_queue_holds_what_its_slots_answer_within_its_bound(slots: int):
    site = Site(CallCost(0.0, 0.002), slots=slots)
    calls = [site.call(1) for _ in range(slots)]
    await turns()
    calls += [site.call(1) for _ in range(800)]
    await turns()
    shed = [call for call in calls if call.done() and isinstance(call.exception(), Overloaded)]
    assert (site.waiting, len(shed)) == (375 * slots, 800 - 375 * slots)
    await site.end()


async def test_the_bound_of_a_queue_follows_the_pace_of_its_calls(monkeypatch: pytest.MonkeyPatch):
    site = Site(CallCost(0.0, 0.002))
    now = time.monotonic()
    monkeypatch.setattr(batching.time, "monotonic", lambda: now)
    for _ in range(50):  # each takes twice the time that was measured
        call = site.call(1)
        await turns()
        now += 0.004
        await site.end()
        assert await call == [2]
    calls = [site.call(1) for _ in range(600)]
    await turns()
    assert 180 <= site.waiting <= 195
    await site.end()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_a_closed_model_fails_its_queued_calls():
    site = Site()
    site.loaded.threads = batching_threads_that_are_shut_down()
    with pytest.raises(Unavailable, match="unloaded"):
        await site.call(1)


def batching_threads_that_are_shut_down() -> Any:
    loaded = LoadedModel("queued", 2, "isolated", SIGNATURE, Doubling())
    loaded.close()
    return loaded.threads


async def test_rows_of_different_dtypes_are_not_joined():
    site, dtypes = Site(), []

    def run(rows: Rows) -> Outputs:
        assert rows.columns is not None
        dtypes.append(rows.columns[0].dtype.name)
        return {"value": rows.columns[0] * 2.0}

    cast(Any, site.runtime).run = run
    columns = [np.array([2**60 + 1]), np.array([1.5]), np.array([2.5]), np.array([3])]
    calls = [
        asyncio.ensure_future(site.queues.run(site.loaded, Rows(columns=(c,)), time.monotonic() + 9))
        for c in columns
    ]
    await site.end()
    assert [float((await call)["value"][0]) for call in calls] == [2.0**61, 3.0, 5.0, 6.0]
    assert dtypes == ["int64", "float64", "int64"]


async def test_queues_report_their_length_their_joint_calls_and_what_they_refuse():
    telemetry.flush()
    before = sizes()
    site = Site()
    calls = [site.call(n) for n in range(3)]
    await site.end()
    await asyncio.gather(*calls)
    waiting = [site.call(n) for n in range(13)]
    await turns()
    telemetry.flush()
    assert value("trivium_queued_calls") == 3
    await site.end()
    await asyncio.gather(*waiting)
    telemetry.flush()
    assert value("trivium_queued_calls") == 0
    after = sizes()
    assert [b - a for a, b in zip(before, after, strict=True)] == [3.0, 16.0]  # 3, 10 and 3 requests


def value(name: str) -> float:
    found = telemetry.REGISTRY.get_sample_value(name, {"model": "queued", "version": "1"})
    return 0.0 if found is None else found


def sizes() -> list[float]:
    return [value(f"trivium_joint_call_requests_{part}") for part in ("count", "sum")]


OPERATIONS = st.one_of(
    st.tuples(st.just("call"), st.integers(1, 4), st.sampled_from(["ok", "ok", "refused", "expired"])),
    st.tuples(st.just("turns"), st.just(0), st.just("")),
    st.tuples(st.just("cancel"), st.integers(0, 20), st.just("")),
    st.tuples(st.just("leave"), st.integers(0, 20), st.just("")),
    st.tuples(st.just("end"), st.integers(0, 1), st.just("")),
)


@settings(max_examples=60, deadline=None)
@given(operations=st.lists(OPERATIONS, max_size=40), slots=st.integers(1, 2), fixed_ms=st.integers(0, 4))
def test_in_any_order_of_events_each_call_gets_its_own_answer_and_no_slot_is_lost(
    operations: list[tuple[str, int, str]], slots: int, fixed_ms: int
) -> None:
    asyncio.run(_play(operations, Site(CallCost(fixed_ms / 1000, 0.001), slots=slots)))


async def _play(operations: list[tuple[str, int, str]], site: Site) -> None:
    values: list[list[float]] = []
    outcomes: list[str] = []
    tasks: list[asyncio.Task[list[float]]] = []
    departures: list[asyncio.Event] = []

    async def depart(event: asyncio.Event) -> None:
        await event.wait()
        raise ConnectionError

    for operation, number, outcome in operations:
        if operation == "call":
            own = [len(tasks) * 10.0 + i + 1 for i in range(number)]
            own = [-v for v in own] if outcome == "refused" else own
            event = asyncio.Event()
            tasks.append(
                site.call(
                    *own,
                    seconds=-1 if outcome == "expired" else 60,
                    departure=lambda event=event: depart(event),
                )
            )
            values.append(own)
            outcomes.append(outcome)
            departures.append(event)
        elif operation == "cancel" and number < len(tasks):
            tasks[number].cancel()
        elif operation == "leave" and number < len(tasks):
            departures[number].set()
        elif operation == "end" and number < len(site.threads.started):
            site.threads.end(number)
        else:
            await turns()
        assert len(site.threads.started) <= site.loaded.slots
    await site.end()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    ran = {v for call in site.runtime.calls for v in call}
    for own, outcome, departure, result in zip(values, outcomes, departures, results, strict=True):
        if isinstance(result, list):
            assert outcome == "ok"
            assert result == [2 * v for v in own]
        elif isinstance(result, ConnectionError):
            assert departure.is_set()
            assert not ran.intersection(own), "it left the queue before it ran"
        elif not isinstance(result, asyncio.CancelledError):
            expected = {"refused": Invalid, "expired": DeadlineExceeded}[outcome]
            assert isinstance(result, expected)
    assert site.waiting == 0
    for queue in site.queues._queues.values():
        assert (queue._running, queue._rows) == (0, 0)
    await turns()
    assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing watches a caller any more"
