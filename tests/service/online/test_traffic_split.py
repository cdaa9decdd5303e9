"""The selection of a version: shares, sticky values, and values that keep their version."""

from __future__ import annotations

import pytest

from registry.traffic import UNITS
from service.online.traffic_split import select_version, sticky_point
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
