"""Smaller tree ensembles: which trees and leaves stay, and the values of merged leaves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor

from registry.errors import Refused
from service.compiler.trees.flatten import flatten
from service.compiler.trees.shrink import MIN_LEAVES, VALUE_BITS, shrink, to_fraction
from service.compiler.trees.tree_arrays import Tree, node_arrays
from service.runtime.nodes import NodeTable
from tests.service.compiler.tflite import cases

DATA = cases.data(300)
FOREST = flatten(RandomForestClassifier(6, random_state=0).fit(DATA.x, DATA.three))
ROUNDS = flatten(GradientBoostingClassifier(n_estimators=4, max_depth=2).fit(DATA.x, DATA.three))


def mean_of_trees(*trees: Tree) -> NodeTable:
    """The mean of trees with one value per leaf."""
    columns = node_arrays(list(trees))
    return NodeTable(
        **columns,  # type: ignore[arg-type]
        outputs=1,
        link="identity",
        base=np.zeros(1),
        weight=np.ones(len(trees)),
    )


def balanced_tree(values: list[float], cover: list[float]) -> Tree:
    """Splits at 1 and then at 0 and 2; the leaves have `values` from left to right, and `cover`."""
    inner = np.array([1.0, 0.0, 2.0])
    threshold = np.concatenate([inner, np.zeros(4)])
    left, right = np.array([1, 3, 5, -1, -1, -1, -1]), np.array([2, 4, 6, -1, -1, -1, -1])
    low, high = sum(cover[:2]), sum(cover[2:])
    return Tree(
        np.zeros(7, dtype=np.int64),
        threshold,
        left,
        right,
        np.ones(7, dtype=bool),
        np.array([0.0, 0.0, 0.0, *values]).reshape(-1, 1),
        np.array([low + high, low, high, *cover]),
    )


FOUR_ROWS = np.array([[-1.0], [0.5], [1.5], [3.0]])


def answers(nodes: NodeTable) -> list[float]:
    return [float(v) for v in nodes.raw(FOUR_ROWS)[:, 0]]


@pytest.mark.parametrize(
    ("values", "cover", "leaves", "expected"),
    [
        ([0.0, 4.0, 8.0, 16.0], [1, 1, 1, 1], 4, [0, 4, 8, 16]),  # no more leaves than allowed
        ([0.0, 4.0, 8.0, 16.0], [1, 1, 1, 1], 3, [2, 2, 8, 16]),  # the closest pair is merged
        ([0.0, 4.0, 8.0, 16.0], [1, 1, 1, 1], 2, [2, 2, 12, 12]),
        ([0.0, 4.0, 8.0, 16.0], [1, 1, 1, 1], 1, [7, 7, 7, 7]),
        ([0.0, 4.0, 8.0, 16.0], [1, 1, 1, 1], 0, [7, 7, 7, 7]),  # at least one leaf
        ([0.0, 4.0, 8.0, 16.0], [3, 1, 1, 1], 2, [1, 1, 12, 12]),  # weighted by the training rows
        ([0.0, 4.0, 8.0, 16.0], [9, 9, 1, 1], 3, [0, 4, 12, 12]),  # pairs of few training rows are merged
        ([0.0, 8.0, 8.0, 16.0], [1, 0, 1, 1], 3, [0, 0, 8, 16]),  # a leaf without training rows
    ],
)
def test_the_pair_of_leaves_is_merged_whose_answers_change_least(
    values: list[float], cover: list[float], leaves: int, expected: list[float]
) -> None:
    small = shrink(mean_of_trees(balanced_tree(values, cover)), 1, leaves)
    step = 2.0 ** (np.ceil(np.log2(max(values))) - VALUE_BITS)
    np.testing.assert_allclose(answers(small), expected, atol=step / 2)
    assert int(small.leaf.sum()) == min(4, max(1, leaves))


def test_leaves_without_training_rows_are_merged_into_their_plain_mean() -> None:
    small = shrink(mean_of_trees(balanced_tree([0.0, 4.0, 100.0, 200.0], [0, 0, 1, 1])), 1, 3)
    assert answers(small)[:2] == pytest.approx([2.0, 2.0], abs=0.1)


def test_a_reduction_describes_only_what_was_removed() -> None:
    nodes = mean_of_trees(*[balanced_tree([0.0, 4.0, 8.0, 16.0], [1] * 4)] * 3)
    assert shrink(nodes, 3, 4).reduction == shrink(nodes, 9, None).reduction == ""
    bits = f"leaf values to {VALUE_BITS} bits"
    assert shrink(nodes, 2, None).reduction == f"kept 2 of 3 trees and 8 of 12 leaves, {bits}"
    assert shrink(nodes, 3, 2).reduction == f"kept 6 of 12 leaves, {bits}"
    assert shrink(nodes, 0, None).trees == 1


def test_values_are_rounded_to_bits_of_the_largest_one() -> None:
    tree = balanced_tree([1.0, 2.0**-VALUE_BITS, 0.4 * 2.0**-VALUE_BITS, -1.0], [1] * 4)
    assert answers(shrink(mean_of_trees(tree), 1, None)) == [1.0, 2.0**-VALUE_BITS, 0.0, -1.0]
    zeros = balanced_tree([0.0] * 4, [1] * 4)
    assert answers(shrink(mean_of_trees(zeros), 1, None)) == [0.0] * 4


@pytest.mark.parametrize(("trees", "left"), [(0, 3), (2, 3), (3, 3), (5, 3), (6, 6), (12, 12), (13, 12)])
def test_boosting_with_several_outputs_keeps_whole_rounds(trees: int, left: int) -> None:
    assert (ROUNDS.trees, ROUNDS.outputs) == (12, 3)
    small = shrink(ROUNDS, trees, None)
    assert (small.trees, len(small.target if small.target is not None else ())) == (left, left)


@pytest.mark.parametrize(("trees", "left"), [(0, 1), (1, 1), (5, 5), (6, 6), (7, 6)])
def test_a_forest_keeps_as_many_trees_as_requested(trees: int, left: int) -> None:
    small = shrink(FOREST, trees, None)
    assert (small.trees, len(small.weight if small.weight is not None else ())) == (left, left)
    np.testing.assert_array_equal(small.left[: len(small.left)], FOREST.left[: len(small.left)])


def test_a_fraction_of_boosting_stops_earlier() -> None:
    assert to_fraction(ROUNDS, 0.5).trees == 6
    assert to_fraction(ROUNDS, 0.0).trees == 3
    assert to_fraction(ROUNDS, 1.0) is ROUNDS
    assert to_fraction(ROUNDS, 0.99).trees == 12


@pytest.mark.parametrize("fraction", [0.0, 0.04, 0.25, 0.5, 0.81, 0.99])
def test_a_fraction_of_a_forest_has_the_most_leaves_within_it(fraction: float) -> None:
    nodes = flatten(RandomForestRegressor(16, random_state=0).fit(DATA.x, DATA.value))
    small = to_fraction(nodes, fraction)
    assert small.trees == max(1, round(16 * fraction**0.5))
    sizes = np.diff(np.append(nodes.root, len(nodes.left)))[: small.trees]
    of_trees = (sizes + 1) // 2
    kept = np.diff(np.append(small.root, len(small.left)))
    bound = int(((kept + 1) // 2).max())
    assert (kept == 2 * np.minimum(of_trees, bound) - 1).all()
    leaves = fraction * (len(nodes.left) + 16) / 2
    total = int(np.minimum(of_trees, bound).sum())
    assert total <= leaves or bound == MIN_LEAVES
    assert np.minimum(of_trees, bound + 1).sum() > leaves or bound == of_trees.max()


def test_the_missing_values_of_a_smaller_tree_go_to_the_same_side() -> None:
    tree = replace(balanced_tree([0.0, 4.0, 8.0, 16.0], [1] * 4), missing_left=np.array([False] + [True] * 6))
    small = shrink(mean_of_trees(tree), 1, 3)
    assert small.raw(np.array([[np.nan]]))[0, 0] == pytest.approx(8.0)


@pytest.mark.parametrize("child", [1, 7, 10**6])
def test_links_to_the_parent_or_beyond_the_nodes_are_refused(child: int) -> None:
    tree = balanced_tree([0.0] * 4, [1] * 4)
    tree.left[1] = child
    with pytest.raises(Refused, match="damaged"):
        node_arrays([tree])


def test_nodes_that_no_root_reaches_are_left_out() -> None:
    tree = balanced_tree([1.0, 2.0, 3.0, 4.0], [1] * 4)
    tree.left[2], tree.right[2] = -1, -1
    tree.values[2] = 9.0
    nodes = mean_of_trees(tree)
    assert (len(nodes.left), nodes.depth) == (5, 2)
    assert answers(nodes) == [1.0, 2.0, 9.0, 9.0]
