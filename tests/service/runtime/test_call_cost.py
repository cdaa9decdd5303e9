"""The measured cost of calls, and what it decides. The clock is the test's own."""

from __future__ import annotations

import numpy as np
import pytest

from registry.rows import Outputs, Rows
from service.runtime import call_cost
from service.runtime.call_cost import CallCost

ROW = Rows(matrix=np.zeros((1, 2)))


class Clock:
    """A clock that only calls of a model advance. `delays` are added to the first calls."""

    def __init__(self, cost: CallCost, delays: list[float]) -> None:
        self.now, self.calls = 100.0, list[int]()
        self._cost, self._delays = cost, delays

    def run(self, rows: Rows) -> Outputs:
        self.calls.append(len(rows))
        self.now += self._cost.seconds(len(rows)) + (self._delays.pop(0) if self._delays else 0.0)
        return {}


def measured(
    monkeypatch: pytest.MonkeyPatch, fixed_s: float, row_s: float, *delays: float
) -> tuple[CallCost, list[int]]:
    """Return the measured cost of a model, and the numbers of rows of its calls."""
    clock = Clock(CallCost(fixed_s, row_s), list(delays))
    monkeypatch.setattr(call_cost.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(call_cost.time, "monotonic", lambda: clock.now)
    return call_cost.measure(clock.run, ROW), clock.calls


@pytest.mark.parametrize(
    ("fixed_s", "row_s", "calls"),
    [
        (0.000_02, 0.000_01, [1, 1, 16, 1, 16, 1, 16]),
        (0.005, 0.0001, [1, 1, 16, 1, 16, 1, 16]),
        (0.05, 0.005, [1, 1, 4, 1, 4, 1, 4]),
        (0.1, 0.1, [1, 1, 4]),
        (0.4, 0.1, [1, 1, 2]),
    ],
)
def test_both_parts_of_the_cost_are_measured_in_about_a_second(
    monkeypatch: pytest.MonkeyPatch, fixed_s: float, row_s: float, calls: list[int]
):
    cost, made = measured(monkeypatch, fixed_s, row_s)
    assert cost == pytest.approx((fixed_s, row_s), rel=1e-6)
    assert made == calls


def test_the_first_call_and_one_slow_round_do_not_count(monkeypatch: pytest.MonkeyPatch):
    cost, _ = measured(monkeypatch, 0.001, 0.0001, 0.2, 0.004, 0.05, 0.0, 0.0, 0.01)
    assert cost == pytest.approx((0.001, 0.0001), rel=1e-6)


@pytest.mark.parametrize(("row_s", "calls"), [(1.5, [1, 1]), (7.0, [1])])
def test_of_a_very_slow_model_one_row_is_measured(
    monkeypatch: pytest.MonkeyPatch, row_s: float, calls: list[int]
):
    assert measured(monkeypatch, 0.0, row_s) == (pytest.approx((0.0, row_s)), calls)


def test_a_row_never_costs_nothing(monkeypatch: pytest.MonkeyPatch):
    cost, _ = measured(monkeypatch, 0.05, 0.0)
    assert cost.row_s == pytest.approx(0.0005)
    assert cost.joint_rows == 99
    assert measured(monkeypatch, 0.0, 0.0)[0].inline_rows > 0  # faster than the clock's resolution


@pytest.mark.parametrize(
    ("cost", "inline_rows", "joint_rows"),
    [
        (CallCost(0.000_020, 0.000_012), 82, 0),  # a forest of 100 trees: joining saves nothing
        (CallCost(0.000_137, 0.000_117), 7, 85),  # a forest of 500 deep trees
        (CallCost(0.000_005, 0.000_001), 256, 0),  # a table of nodes
        (CallCost(0.008, 0.000_02), 0, 500),  # a forest in its own process
        (CallCost(0.05, 0.01), 0, 5),  # rows up to the fixed part
        (CallCost(0.001, 0.01), 0, 0),  # nearly all of it is the row
        (CallCost(0.1, 0.09), 0, 2),  # two requests at least
        (CallCost(0.002, 0.000_001), 0, 1024),
        (call_cost.UNKNOWN, 0, 0),
    ],
)
def test_the_cost_decides_where_calls_run_and_which_are_joined(
    cost: CallCost, inline_rows: int, joint_rows: int
):
    assert (cost.inline_rows, cost.joint_rows) == (inline_rows, joint_rows)
