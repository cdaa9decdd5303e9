"""The queue and the thread of shadows, step by step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from registry import db, traffic
from registry.rows import Outputs
from registry.traffic import NewTraffic, ShadowResult
from service.online.call_formats import TableFormat
from service.online.shadow import MAX_BYTES, MAX_CALLS, RefusedCall, Shadows, SplitCall, _Throttle
from service.runtime.snapshot import SnapshotTraffic
from tests.service.api import Api
from tests.service.model_rows import copy_version

pytestmark = pytest.mark.anyio
JSON = TableFormat("application/json", "application/json")
BODY = b'{"instances":[{"x0":2.0,"x1":0.0,"x2":0.0}]}'
OUTPUTS: Outputs = {"label": np.array(["yes"], dtype=object), "probabilities": np.array([[0.1, 0.9]])}


class Idle(Shadows):
    """Shadows without the thread: tests call `step`."""

    def _start(self) -> None:
        self._loads.loop = asyncio.get_running_loop()


@pytest.fixture
async def split(api: Api, unique_name: str) -> SnapshotTraffic:
    """The traffic of a model whose version 2, with opposite answers, is the shadow of version 1."""
    for number in (1, 2):
        copy_version(api.settings.home, "flag", unique_name, number=number)
    await api.promote(unique_name, 1)
    return await put(api, unique_name, NewTraffic(shadow=2))


async def put(api: Api, model: str, new: NewTraffic) -> SnapshotTraffic:
    with api.services.sessions.begin() as session:
        traffic.put(session, model, "champion", new, by="ann")
    await asyncio.to_thread(api.services.snapshot.refresh)
    return api.services.snapshot.state.traffic[model, "champion"]


@pytest.fixture
def shadows(api: Api) -> Shadows:
    return Idle(api.services.snapshot, api.services.pool, api.services.sessions)


def offer(shadows: Shadows, split: SnapshotTraffic, body: bytes = BODY, outputs: Outputs = OUTPUTS) -> None:
    """Offer a call of one row."""
    shadows.offer(SplitCall(split, 1, JSON, body, 0.001), outputs, 1)


async def stored(api: Api, split: SnapshotTraffic, shadows: Shadows) -> ShadowResult:
    await asyncio.to_thread(shadows.flush)
    with db.reading(api.services.sessions) as session:
        (row,) = traffic.results(session, split.model, split.alias)
    return traffic.result_of(row)


async def load(api: Api, split: SnapshotTraffic, number: int) -> None:
    await api.services.pool.get(api.services.snapshot.resolve(split.model, number=number).id)


async def test_a_full_queue_drops_calls_and_counts_them(
    api: Api, split: SnapshotTraffic, shadows: Shadows
) -> None:
    for _ in range(MAX_CALLS + 3):
        offer(shadows, split)
    assert (await stored(api, split, shadows)).shed == 3


async def test_large_bodies_fill_the_queue(api: Api, split: SnapshotTraffic, shadows: Shadows) -> None:
    for _ in range(3):
        offer(shadows, split, bytes(MAX_BYTES // 2 - 100))
    assert (await stored(api, split, shadows)).shed == 1


async def test_large_answers_fill_the_queue(api: Api, split: SnapshotTraffic, shadows: Shadows) -> None:
    answer: Outputs = {"probabilities": np.zeros((1, MAX_BYTES // 8 // 2 - 100))}
    for _ in range(3):
        offer(shadows, split, outputs=answer)
    assert (await stored(api, split, shadows)).shed == 1


async def test_calls_are_dropped_while_the_shadow_is_loaded(
    api: Api, split: SnapshotTraffic, shadows: Shadows
) -> None:
    offer(shadows, split)
    await asyncio.to_thread(shadows.step)
    assert (await stored(api, split, shadows)).shed == 1
    await load(api, split, 2)
    offer(shadows, split)
    await asyncio.to_thread(shadows.step)
    result = await stored(api, split, shadows)
    assert (result.rows, result.agreed, result.shed) == (1, 0, 1)


async def test_one_bad_call_fails_alone(api: Api, split: SnapshotTraffic, shadows: Shadows) -> None:
    await load(api, split, 2)
    for body in (BODY, b"{}", BODY):
        offer(shadows, split, body)
    await asyncio.to_thread(shadows.step)
    result = await stored(api, split, shadows)
    assert (result.rows, result.failed) == (2, 1)
    assert sum(result.latency.counts) == 2


async def test_figures_that_cannot_be_stored_are_kept(
    api: Api, split: SnapshotTraffic, shadows: Shadows, monkeypatch: pytest.MonkeyPatch
) -> None:
    await load(api, split, 2)
    offer(shadows, split)
    await asyncio.to_thread(shadows.step)

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(traffic, "add_result", fail)
        await asyncio.to_thread(shadows.flush)
    assert (await stored(api, split, shadows)).rows == 1


async def test_a_stop_stores_the_figures(api: Api, split: SnapshotTraffic) -> None:
    shadows = Shadows(api.services.snapshot, api.services.pool, api.services.sessions)
    await load(api, split, 2)
    offer(shadows, split)
    while shadows._calls:  # noqa: ASYNC110 - the thread takes them
        await asyncio.sleep(0.01)
    await asyncio.to_thread(shadows.stop)
    with db.reading(api.services.sessions) as session:
        (row,) = traffic.results(session, split.model, split.alias)
    assert row.rows == 1


async def test_an_isolated_model_is_a_shadow_too(api: Api, unique_name: str, shadows: Shadows) -> None:
    for source in ("price", "sleeper"):
        copy_version(api.settings.home, source, unique_name)
    await api.promote(unique_name, 1)
    split = await put(api, unique_name, NewTraffic(shadow=2))
    await load(api, split, 2)
    for _ in range(3):
        offer(shadows, split, outputs={"value": np.array([2.0])})
    await asyncio.to_thread(shadows.step)
    result = await stored(api, split, shadows)
    assert (result.rows, result.agreed, result.last_error) == (3, 3, None)


async def test_only_what_the_version_accepts_is_reported(
    api: Api, split: SnapshotTraffic, shadows: Shadows
) -> None:
    await load(api, split, 1)
    reported: list[str] = []

    def refused(body: bytes, name: str) -> RefusedCall:
        report: Callable[[], object] = lambda: reported.append(name)  # noqa: E731
        return RefusedCall(SplitCall(split, 2, JSON, body, 0.001), report)

    shadows.check(refused(BODY, "accepted"))
    shadows.check(refused(b"{}", "refused"))
    await asyncio.to_thread(shadows.step)
    assert reported == ["accepted"]


def test_a_busy_process_leaves_the_shadow_a_small_share() -> None:
    throttle = _Throttle()
    assert throttle.pause(0.01) == pytest.approx(0.01)  # half of the time
    throttle._busy = 1.0
    assert throttle.pause(0.01) == pytest.approx(0.49)
