"""scikit-learn's two kinds of tree as plain arrays: what every other form of a forest is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from registry.rows import Array


@dataclass(frozen=True)
class Tree:
    """Arrays by node, the root first, children -1 at leaves.

    `values` [nodes, targets] float64 is what a leaf adds to the answer, `cover` how much of the training rows
    came by (only ratios matter).
    """

    feature: Array
    threshold: Array
    left: Array
    right: Array
    missing_left: Array
    values: Array
    cover: Array


def from_tree(tree: Any, values: Array, features: Array | None = None) -> Tree:
    """A `sklearn.tree._tree.Tree` and what its leaves should add; `features`: the columns it was given."""
    feature = tree.feature if features is None else np.asarray(features)[np.maximum(tree.feature, 0)]
    children = tree.children_left, tree.children_right
    return Tree(
        feature, tree.threshold, *children, tree.missing_go_to_left, values, tree.weighted_n_node_samples
    )


def from_predictor(predictor: Any, target: int = 0, targets: int = 1) -> Tree:
    """A tree of histogram boosting. Raises `NotImplementedError` for splits on categories."""
    nodes = predictor.nodes
    leaf = nodes["is_leaf"] != 0
    if (nodes["is_categorical"][~leaf] != 0).any():
        raise NotImplementedError("histogram boosting with splits on categories")
    values = np.zeros((len(nodes), targets))
    values[:, target] = nodes["value"]
    left, right = (np.where(leaf, -1, nodes[side].astype(np.int64)) for side in ("left", "right"))
    missing = nodes["missing_go_to_left"]
    return Tree(nodes["feature_idx"], nodes["num_threshold"], left, right, missing, values, nodes["count"])
