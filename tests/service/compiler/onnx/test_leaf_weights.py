"""Sums of doubles in ONNX trees: the two halves of the leaf values, and rows at the threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from service.compiler.onnx.converters.node_writer import MANTISSA_BITS, _leaf_weights, tree_attributes
from service.compiler.trees.tree_arrays import Tree


def tree(*leaves: float, **fields: Any) -> Tree:
    """A split of the second feature at 0.1; the leaves are left and right."""
    parts: dict[str, Any] = {
        "feature": np.array([1, -2, -2]),
        "threshold": np.array([0.1, -2.0, -2.0]),
        "left": np.array([1, -1, -1]),
        "right": np.array([2, -1, -1]),
        "missing_left": np.array([1, 0, 0]),
        "values": np.array([[99.0], [leaves[0]], [leaves[1]]]),
        "cover": np.ones(3),
    }
    return Tree(**{**parts, **fields})


def test_inner_nodes_and_leaves_are_written_in_their_order() -> None:
    attributes = tree_attributes([tree(1.0, 2.0), tree(4.0, 0.0)])
    assert attributes["n_targets"] == 1
    assert attributes["nodes_treeids"] == [0, 0, 0, 1, 1, 1]
    assert attributes["nodes_nodeids"] == [0, 1, 2, 0, 1, 2]
    assert attributes["nodes_modes"] == ["BRANCH_LEQ", "LEAF", "LEAF"] * 2
    assert attributes["nodes_featureids"] == [1, 0, 0] * 2
    assert attributes["nodes_truenodeids"] == [1, 0, 0] * 2
    assert attributes["nodes_falsenodeids"] == [2, 0, 0] * 2
    assert attributes["nodes_missing_value_tracks_true"] == [1, 0, 0] * 2
    assert numpy_helper.to_array(attributes["nodes_values_as_tensor"]).tolist() == [0.1, 0.0, 0.0] * 2
    weights = numpy_helper.to_array(attributes["target_weights_as_tensor"]).tolist()
    leaves = zip(attributes["target_treeids"], attributes["target_nodeids"], weights, strict=True)
    assert sorted(leaves) == [(0, 1, 1.0), (0, 2, 2.0), (1, 1, 4.0), (1, 2, 0.0)]


def halves(values: list[list[float]], trees: int = 1) -> tuple[int, np.ndarray]:
    """(halves, [nodes, halves * targets] as written)."""
    array = np.array(values)
    count, at, target, weight = _leaf_weights(array, np.arange(len(array)), trees)
    written = np.zeros((len(array), count * array.shape[1]))
    np.add.at(written, (at, target), weight)
    assert set(at.tolist()) == set(range(len(array)))  # every leaf has a weight
    return count, written


def test_values_that_float32_adds_exactly_have_no_fine_half() -> None:
    assert halves([[1.0, 0.0], [0.0, 3.0], [0.0, 0.0]])[0] == 1
    assert halves([[0.0], [0.0]])[0] == 1


@pytest.mark.parametrize("trees", [1, 2, 3, 1000])
def test_both_halves_add_up_to_the_values_and_the_coarse_ones_without_rounding(trees: int) -> None:
    values = np.random.default_rng(0).normal(size=(50, 2))
    count, written = halves(values.tolist(), trees)
    assert count == 2
    coarse, fine = written[:, :2], written[:, 2:]
    np.testing.assert_array_equal(coarse + fine, values)
    largest = np.abs(values).max() * trees
    step = 2.0 ** (np.ceil(np.log2(largest)) - MANTISSA_BITS)
    np.testing.assert_array_equal(coarse % step, 0.0)
    assert np.abs(fine).max() <= step / 2
    assert largest / step <= 2.0**MANTISSA_BITS


def test_the_step_is_that_of_the_sum_of_all_trees() -> None:
    value = 1.0 + 2.0**-MANTISSA_BITS
    assert halves([[value]], trees=1)[0] == 2  # the largest sum is just above a power of two
    exact = 1.0 - 2.0**-MANTISSA_BITS
    assert halves([[exact]], trees=1)[0] == 1
    assert halves([[exact]], trees=2)[0] == 2
