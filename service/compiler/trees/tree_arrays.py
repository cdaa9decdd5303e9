"""scikit-learn's two kinds of tree as plain arrays, the source of all other forms of a forest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from registry.errors import Refused
from registry.rows import Array


@dataclass(frozen=True)
class Tree:
    """Arrays by node, the root first; the children of a leaf are -1.

    `values` [nodes, targets] float64 is what a leaf adds to the answer. `cover` is the weight of the training
    rows that reach the node; only ratios matter.
    """

    feature: Array
    threshold: Array
    left: Array
    right: Array
    missing_left: Array
    values: Array
    cover: Array


def from_tree(tree: Any, values: Array, features: Array | None = None) -> Tree:
    """Convert a `sklearn.tree._tree.Tree`.

    `values` are what its nodes add. `features` are the input columns it was fitted on; None: all of them.
    """
    feature = tree.feature if features is None else np.asarray(features)[np.maximum(tree.feature, 0)]
    children = tree.children_left, tree.children_right
    return Tree(
        feature, tree.threshold, *children, tree.missing_go_to_left, values, tree.weighted_n_node_samples
    )


def from_predictor(predictor: Any, target: int = 0, targets: int = 1) -> Tree:
    """Convert a tree of histogram boosting. Raises `NotImplementedError` for splits on categories."""
    nodes = predictor.nodes
    leaf = nodes["is_leaf"] != 0
    if (nodes["is_categorical"][~leaf] != 0).any():
        raise NotImplementedError("histogram boosting with splits on categories")
    values = np.zeros((len(nodes), targets))
    values[:, target] = nodes["value"]
    left, right = (np.where(leaf, -1, nodes[side].astype(np.int64)) for side in ("left", "right"))
    missing = nodes["missing_go_to_left"]
    return Tree(nodes["feature_idx"], nodes["num_threshold"], left, right, missing, values, nodes["count"])


def node_arrays(trees: list[Tree]) -> dict[str, Array | int]:
    """The node arrays, `root` and `depth` of a `NodeTable`, by field name."""
    sizes = np.array([len(t.feature) for t in trees])
    start = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    shift = np.repeat(start, sizes)
    left, right = (
        np.concatenate([getattr(t, side) for t in trees]).astype(np.int64) for side in ("left", "right")
    )
    inner = left >= 0
    left, right = left + shift, right + shift
    order, depth = _breadth_first(start, inner, left, right)
    owner = np.repeat(np.arange(len(trees)), sizes)[order]
    order = order[np.argsort(owner, kind="stable")]
    place = np.full(len(inner), -1)  # without the nodes that no root reaches
    place[order] = np.arange(len(order))
    inner = inner[order]

    def column(name: str) -> Array:
        return np.concatenate([np.asarray(getattr(t, name)) for t in trees])[order]

    return {
        "feature": np.where(inner, column("feature"), 0).astype(np.int32),
        "threshold": np.where(inner, column("threshold").astype(np.float64), np.inf),
        "left": np.where(inner, place[np.where(inner, left[order], 0)], np.arange(len(order))).astype(
            np.int32
        ),
        "missing_left": np.where(inner, column("missing_left").astype(bool), True),
        "values": np.where(inner[:, None], 0.0, column("values").astype(np.float64)),
        "cover": column("cover").astype(np.float64),
        "root": place[start].astype(np.int32),
        "depth": depth,
    }


def _breadth_first(roots: Array, inner: Array, left: Array, right: Array) -> tuple[Array, int]:
    """All nodes level by level, siblings adjacent, and the number of levels below the roots.

    Raises `Refused` when the links between nodes form a cycle or leave the arrays.
    """
    level, levels, count = roots, [], 0
    while len(level):
        levels.append(level)
        count += len(level)
        if count > len(inner) or max(left.max(), right.max()) >= len(inner):
            raise Refused(
                "the estimator is damaged: the links of its tree nodes form a cycle or lead to missing nodes"
            )
        parents = level[inner[level]]
        level = np.column_stack([left[parents], right[parents]]).ravel()
    return np.concatenate(levels), len(levels) - 1
