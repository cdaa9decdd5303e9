"""The statement that a canary passed a bound: enough calls, and no chance."""

from __future__ import annotations

import random
from typing import Any

import pytest
from scipy.stats import binom

from service.online.canary import MIN_CALLS, WINDOW, CanaryWindow, binomial_tail, is_above
from service.runtime.snapshot import SnapshotTraffic


def window(error_rate: float | None = None, p99_ms: float | None = None) -> CanaryWindow:
    fields: dict[str, Any] = {"model": "flag", "alias": "champion", "own": 1, "put_id": 1}
    split = SnapshotTraffic(
        limits=[900_000, 1_000_000],
        numbers=[1, 2],
        sticky_header=None,
        error_rate=error_rate,
        p99_ms=p99_ms,
        shadow=None,
        shadow_id=None,
        **fields,
    )
    return CanaryWindow(split, 2)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_the_tail_is_that_of_the_binomial_distribution(share: float) -> None:
    for calls in (20, 100, 1000):
        for count in range(int(calls * share) + 1, calls + 1, max(1, calls // 20)):
            assert binomial_tail(count, calls, share) == pytest.approx(
                binom.sf(count - 1, calls, share), rel=1e-6
            )


def test_a_bound_of_zero_permits_no_failure() -> None:
    assert is_above(1, MIN_CALLS, 0.0)
    assert not is_above(0, MIN_CALLS, 0.0)


def test_failures_before_the_fewest_calls_count_too() -> None:
    canary = window(error_rate=0.0)
    results = [canary.add(0.001, None if call else "it failed") for call in range(MIN_CALLS)]
    assert [result is None for result in results] == [True] * (MIN_CALLS - 1) + [False]


def test_a_broken_canary_is_found_with_the_fewest_calls() -> None:
    canary = window(error_rate=0.02)
    results = [canary.add(0.001, "it failed") for _ in range(MIN_CALLS)]
    assert results[:-1] == [None] * (MIN_CALLS - 1)
    assert results[-1] == (
        "error_rate",
        "version 2 failed 20 of 20 calls (100.0%, the bound is 0.02): it failed",
    )


def test_failures_within_the_bound_are_no_reason() -> None:
    generator = random.Random(7)
    canary = window(error_rate=0.1, p99_ms=50)
    for _ in range(20_000):
        failure = "it failed" if generator.random() < 0.07 else None
        assert canary.add(0.06 if generator.random() < 0.005 else 0.01, failure) is None


def test_a_canary_that_breaks_later_is_found_within_the_window() -> None:
    canary = window(error_rate=0.02)
    for _ in range(5 * WINDOW):
        assert canary.add(0.001, None) is None
    failures = 1
    while canary.add(0.001, "it failed") is None:
        failures += 1
    assert failures < 0.05 * WINDOW


def test_slow_calls_pass_the_bound_of_the_latency() -> None:
    canary = window(p99_ms=50)
    for _ in range(100):
        assert canary.add(0.049, None) is None
    breach = None
    while breach is None:
        breach = canary.add(0.2, None)
    assert breach.bound == "p99_ms"
    assert "calls of version 2 took longer than 50 ms" in breach.reason
