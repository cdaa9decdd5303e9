"""The selection of a version: shares, sticky values, and values that keep their version."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from msgspec.structs import replace
from starlette.exceptions import HTTPException

from registry.errors import DeadlineExceeded, Invalid, NotReady, Overloaded
from registry.traffic import UNITS
from service.online.call_formats import TableFormat
from service.online.canary import Canaries
from service.online.shadow import RefusedCall, Shadows, SplitCall
from service.online.traffic_split import SplitCalls, select_version, sticky_point
from service.runtime.snapshot import SnapshotTraffic


def split(segments: list[list[int]], header: bytes | None = b"x-user") -> SnapshotTraffic:
    return SnapshotTraffic(
        model="fraud",
        alias="champion",
        own=1,
        limits=[limit for limit, _ in segments],
        numbers=[number for _, number in segments],
        sticky_header=header,
        error_rate=None,
        p99_ms=None,
        put_id=1,
        shadow=None,
        shadow_id=None,
    )


def selected(traffic: SnapshotTraffic, count: int = 20_000) -> list[int]:
    return [select_version(traffic, {b"x-user": b"user-%d" % i})[0] for i in range(count)]


TEN_PERCENT = split([[900_000, 1], [UNITS, 2]])


def test_a_value_has_the_same_point_in_every_process() -> None:
    """The numbers must never change: a restart would give callers another version."""
    assert sticky_point("fraud", "champion", b"ann") == 826_539
    assert sticky_point("fraud", "challenger", b"ann") == 259_554
    assert sticky_point("churn", "champion", b"ann") == 375_842


def test_sticky_values_are_split_by_weight() -> None:
    share = selected(TEN_PERCENT).count(2) / 20_000
    assert share == pytest.approx(0.1, abs=0.01)  # 4.7 standard deviations


def test_only_the_values_of_the_changed_share_change_their_version() -> None:
    before, after = selected(TEN_PERCENT), selected(split([[700_000, 1], [UNITS, 2]]))
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert set(changed) == {(1, 2)}
    assert len(changed) / 20_000 == pytest.approx(0.2, abs=0.015)


def test_calls_without_the_header_are_random() -> None:
    for headers in ({}, {b"x-user": b""}, {b"x-other": b"ann"}):
        results = [select_version(TEN_PERCENT, headers) for _ in range(2000)]
        assert all(is_random for _, is_random in results)
        assert 100 < [number for number, _ in results].count(2) < 300


def test_a_single_version_is_not_random() -> None:
    assert select_version(split([[UNITS, 3]], header=None), {}) == (3, False)


PASSED = 0.0  # a deadline


class Observed(Canaries, Shadows):
    """Records what would be counted, and what would be checked with the alias's version."""

    def __init__(self) -> None:
        self.failures: list[str | None] = []
        self.checked: list[RefusedCall] = []

    def record(self, split: SnapshotTraffic, number: int, seconds: float, failure: str | None) -> None:
        self.failures.append(failure)

    def check(self, refused: RefusedCall) -> None:
        self.checked.append(refused)


def observe(
    error: BaseException, seconds: float = 0.1, deadline: float | None = None, number: int = 2
) -> Observed:
    observed = Observed()
    traffic = replace(TEN_PERCENT, error_rate=0.02, p99_ms=500.0)
    json = TableFormat("application/json", "application/json")

    async def fail() -> None:
        call = SplitCall(traffic, number, json, b"{}", seconds)
        SplitCalls(cast(Any, observed), cast(Any, observed)).failed(call, error, deadline)

    asyncio.run(fail())
    return observed


def test_every_error_but_a_refusal_counts_against_a_canary() -> None:
    for error in (NotReady("gone"), Overloaded("flag", 16), DeadlineExceeded("slow"), ValueError("a bug")):
        assert observe(error).failures == [f"{type(error).__name__}: {error}"]
        assert observe(error, number=1).failures == []  # the alias's version is no canary


def test_a_refused_input_is_checked_with_the_version_of_the_alias() -> None:
    observed = observe(Invalid("x0 is missing"))
    assert (observed.failures, [r.call.number for r in observed.checked]) == ([], [2])


def test_what_the_caller_caused_does_not_count() -> None:
    late = DeadlineExceeded("slow")
    assert observe(late, seconds=0.01, deadline=PASSED).failures == []
    assert observe(late, seconds=1.5, deadline=PASSED).failures == ["DeadlineExceeded: slow"]
    for left in (HTTPException(400, "the client disconnected"), asyncio.CancelledError()):
        assert observe(left).failures == []


def test_a_call_whose_caller_left_took_at_least_that_long() -> None:
    for left in (HTTPException(400, "the client disconnected"), asyncio.CancelledError()):
        assert observe(left, seconds=0.6).failures == [None]
    ended = observe(asyncio.CancelledError(), seconds=1.5, deadline=PASSED)
    assert ended.failures == ["DeadlineExceeded: the deadline of the call passed"]
