"""The table of nodes as numpy computes it, and thresholds rounded to float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from registry.rows import Array
from service.runtime.nodes import NodeTable, round_down

MAX_FLOAT32 = float(np.finfo(np.float32).max)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, 0.5),
        (float(np.nextafter(0.5, 1)), 0.5),
        (float(np.nextafter(0.5, 0)), float(np.nextafter(np.float32(0.5), np.float32(0)))),
        (-0.5, -0.5),
        (float(np.nextafter(-0.5, -1)), float(np.nextafter(np.float32(-0.5), np.float32(-1)))),
        (1e-50, 0.0),
        (-1e-50, -1.401298464324817e-45),
        (1e300, MAX_FLOAT32),
        (-1e300, -np.inf),
        (MAX_FLOAT32, MAX_FLOAT32),
        (-MAX_FLOAT32, -MAX_FLOAT32),
        (float(np.nextafter(-MAX_FLOAT32, -np.inf)), -np.inf),
        (np.inf, np.inf),
        (-np.inf, -np.inf),
    ],
)
def test_a_number_is_rounded_to_the_float32_at_or_below_it(value: float, expected: float) -> None:
    rounded = round_down(np.array([value]))
    assert rounded.dtype == np.float32
    assert rounded.tolist() == [expected]


def stumps(values: list[list[float]], **fields: Any) -> NodeTable:
    """Trees of one split of the first feature at 0.1; `values` are left and right of each tree."""
    trees = len(values)
    left = np.concatenate([[3 * t + 1, 3 * t + 1, 3 * t + 2] for t in range(trees)])
    parts: dict[str, Any] = {
        "feature": np.zeros(3 * trees, dtype=np.int32),
        "threshold": np.array([0.1, np.inf, np.inf] * trees),
        "left": left.astype(np.int32),
        "missing_left": np.ones(3 * trees, dtype=bool),
        "values": np.array([v for low, high in values for v in (0.0, low, high)]).reshape(-1, 1),
        "cover": np.ones(3 * trees),
        "root": np.arange(0, 3 * trees, 3, dtype=np.int32),
        "depth": 1,
        "outputs": 1,
        "link": "identity",
        "base": np.zeros(1),
    }
    return NodeTable(**{**parts, **fields})


def column(*values: float) -> Array:
    return np.array(values).reshape(-1, 1)


def test_a_raw_answer_is_the_base_and_the_weighted_mean_of_the_leaves() -> None:
    nodes = stumps([[1.0, 2.0], [30.0, 40.0]], base=np.array([100.0]))
    assert (nodes.trees, nodes.divisor) == (2, 1.0)
    assert nodes.raw(column(0.0, 1.0)).tolist() == [[131.0], [142.0]]
    weighted = stumps([[1.0, 2.0], [30.0, 40.0]], base=np.array([100.0]), weight=np.array([1.0, 3.0]))
    assert weighted.divisor == 4.0
    assert weighted.raw(column(0.0)).tolist() == [[100.0 + 31.0 / 4.0]]


def test_a_tree_with_a_target_adds_to_that_answer_alone() -> None:
    target = np.array([0, 1, 0], dtype=np.int32)
    nodes = stumps(
        [[1.0, 2.0], [30.0, 40.0], [500.0, 600.0]], target=target, outputs=2, base=np.array([0.5, 0.25])
    )
    assert nodes.raw(column(0.0, 1.0)).tolist() == [[501.5, 30.25], [602.5, 40.25]]


def test_a_feature_at_the_threshold_goes_left_after_it_was_rounded() -> None:
    nodes = stumps([[1.0, 2.0]])
    assert nodes.raw(column(0.1, 0.11, np.nan)).tolist() == [[2.0], [2.0], [1.0]]  # float32(0.1) > 0.1
    exact = stumps([[1.0, 2.0]], rounded=False)
    assert exact.raw(column(0.1, np.nextafter(0.1, 1))).tolist() == [[1.0], [2.0]]
    right = stumps([[1.0, 2.0]], missing_left=np.array([False, True, True]))
    assert right.raw(column(np.nan)).tolist() == [[2.0]]
