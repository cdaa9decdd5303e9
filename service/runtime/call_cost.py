"""The cost of a model's calls, measured when it is loaded.

It decides where a call runs (on the event loop or in a thread), and whether concurrent requests are joined
into one call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from registry.rows import Outputs, Rows

INLINE_S = 0.001
"""Calls faster than this run on the event loop: moving to a thread and back costs about 0.1 ms."""
JOIN_S = 0.00005
"""Least fixed cost at which requests are joined: waiting in a queue and joining cost half of it."""
JOIN_SHARE = 0.2
"""Least share of the fixed cost in a call of one row: below it, joining saves little and delays the first."""
MIN_JOINT_S = 0.01
"""Rows are joined until they cost as much as the call itself, or this long."""
MAX_JOINT_ROWS = 1024

ROUNDS = 3
MEASURED_ROWS = 16
SLOW_S, TOO_SLOW_S = 0.02, 1.0
"""Of a model whose row takes longer than the first, two rows are measured once; than the second, only one."""


class CallCost(NamedTuple):
    """The seconds of a call: a fixed part, and a part for each row."""

    fixed_s: float
    row_s: float

    def seconds(self, rows: int) -> float:
        return self.fixed_s + rows * self.row_s

    @property
    def inline_rows(self) -> int:
        """The most rows of a call on the event loop."""
        if self.row_s <= 0:
            return MAX_JOINT_ROWS if self.fixed_s < INLINE_S else 0
        return max(0, int((INLINE_S - self.fixed_s) / self.row_s))

    @property
    def joint_rows(self) -> int:
        """The most rows of a call of joined requests; 0 if joining saves too little."""
        if self.fixed_s < max(JOIN_S, JOIN_SHARE * self.seconds(1)):
            return 0
        budget_s = max(self.fixed_s, MIN_JOINT_S)
        return MAX_JOINT_ROWS if self.row_s <= 0 else max(2, min(MAX_JOINT_ROWS, int(budget_s / self.row_s)))


UNKNOWN = CallCost(0.0, 0.01)
"""Assumed if the model refuses the example: its calls run in threads and are not joined."""


def measure(run: Callable[[Rows], Outputs], row: Rows) -> CallCost:
    """Measure calls with one row and with several. The first call warms up the model.

    The numbers of rows alternate: LiteRT allocates its tensors when the number changes.
    """
    one_s = _seconds(run, row)
    if one_s < 5 * TOO_SLOW_S:
        one_s = _seconds(run, row)
    if one_s > TOO_SLOW_S:
        return CallCost(0.0, one_s)
    count = MEASURED_ROWS if one_s < SLOW_S else 2
    several = row.take(np.zeros(count, dtype=np.intp))
    several_s = _seconds(run, several)
    for _ in range(ROUNDS - 1 if one_s < SLOW_S else 0):
        one_s = min(one_s, _seconds(run, row))
        several_s = min(several_s, _seconds(run, several))
    row_s = max(0.0, (several_s - one_s) / (count - 1))
    return CallCost(max(0.0, one_s - row_s), row_s)


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _seconds(run: Callable[[Rows], Outputs], rows: Rows) -> float:
    start = time.perf_counter()
    run(rows)
    return time.perf_counter() - start
