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
MAX_INLINE_ROWS = 256
"""Most rows of a call on the event loop, because answers are encoded there, too."""
JOIN_S = 0.00005
"""Least fixed cost at which requests are joined: a queue costs each of them 5 to 15 us."""
JOIN_SHARE = 0.2
"""Least share of the fixed cost in a call of one row: below it, joining saves little and delays the first."""
MIN_JOINT_S = 0.01
"""Rows are joined until they cost as much as the call itself, or this long."""
MAX_JOINT_ROWS = 1024

ROUNDS = 3
ROUNDS_S = 0.5
"""Longest time after which a further round of measurements begins."""
MEASURED_ROWS = ((0.02, 16), (0.25, 4), (1.0, 2))
"""The number of rows of the second call, by the seconds of a call with one row below which it is used."""
MIN_ROW_SHARE = 0.01
"""Least cost of a row as a share of a call with one: a measured 0 is noise, and would join any number."""


class CallCost(NamedTuple):
    """The seconds of a call: a fixed part, and a part for each row."""

    fixed_s: float
    row_s: float

    def seconds(self, rows: int) -> float:
        return self.fixed_s + rows * self.row_s

    @property
    def inline_rows(self) -> int:
        """The most rows of a call on the event loop."""
        return max(0, min(MAX_INLINE_ROWS, round((INLINE_S - self.fixed_s) / self.row_s)))

    @property
    def joint_rows(self) -> int:
        """The most rows of a call of joined requests; 0 if joining saves too little."""
        if self.fixed_s < max(JOIN_S, JOIN_SHARE * self.seconds(1)):
            return 0
        budget_s = max(self.fixed_s, MIN_JOINT_S)
        return max(2, min(MAX_JOINT_ROWS, round(budget_s / self.row_s)))


UNKNOWN = CallCost(0.0, 0.01)
"""Assumed if the example is refused or not answered in time: calls run in threads and are not joined."""


def measure(run: Callable[[Rows], Outputs], row: Rows) -> CallCost:
    """Measure calls with one row and with several. The first call warms up the model.

    The numbers of rows alternate: LiteRT allocates its tensors when the number changes.
    """
    start = time.monotonic()
    one_s = _seconds(run, row)
    if one_s < ROUNDS_S * 10:
        one_s = _seconds(run, row)
    count = next((count for limit_s, count in MEASURED_ROWS if one_s < limit_s), 1)
    if count == 1:
        return CallCost(0.0, one_s)
    several = row.take(np.zeros(count, dtype=np.intp))
    several_s = _seconds(run, several)
    for _ in range(ROUNDS - 1):
        if time.monotonic() - start > ROUNDS_S:
            break
        one_s = min(one_s, _seconds(run, row))
        several_s = min(several_s, _seconds(run, several))
    row_s = max(MIN_ROW_SHARE * one_s, (several_s - one_s) / (count - 1), 1e-9)
    return CallCost(max(0.0, one_s - row_s), row_s)


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _seconds(run: Callable[[Rows], Outputs], rows: Rows) -> float:
    start = time.perf_counter()
    run(rows)
    return time.perf_counter() - start
