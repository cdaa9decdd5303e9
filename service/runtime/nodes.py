"""A tree ensemble as one flat table of nodes, on which edge export, predictions and batch scoring run.

The children of a node are adjacent, so one step down a tree is
`i = left[i] + (x[feature[i]] > threshold[i])`. A leaf is its own left child.

This module defines the table and how the values of the reached leaves become an answer.
`service/compiler/trees/flatten.py` builds the table of an estimator, `service/compiler/trees/shrink.py` makes
it smaller, `node_file` writes it to a file, and `forest_runtime` runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from registry.rows import Array

Link = Literal["identity", "fractions", "sigmoid", "softmax", "exp", "isolation"]


@dataclass(frozen=True)
class NodeTable:
    """`n` nodes of all trees. The nodes of a tree are contiguous, its root first, siblings adjacent.

    Raw answer `k` is `base[k] + sum(leaf values of the trees) / divisor`. With `target`, each tree has one
    value per leaf and adds it to that answer alone. Leaf values include the weights of the trees. `link`
    turns the raw answers into the answer:

    - `identity`: the raw value. `exp`: its exponential.
    - `fractions`: class probabilities, in `blocks` of classes by output; the label is the first largest one.
    - `sigmoid`: `1 / (1 + exp(-slope * raw))` is the probability of the second class, which is the label
      where raw is above `cut`.
    - `softmax`: of `slope * raw`; the label is the first largest one.
    - `isolation`: score `cut_score - 2 ** (-slope * raw)`, label 1 where raw is above `cut`, else -1.
    """

    feature: Array  # int32 [n], 0 at leaves
    threshold: Array  # float64 [n], as fitted; +inf at leaves
    left: Array  # int32 [n], the left child; the right child is the next node; at a leaf the leaf itself
    missing_left: Array  # bool [n], NaN goes left; True at leaves and where the estimator refuses NaN
    values: Array  # float64 [n, width], 0 at inner nodes
    cover: Array  # float64 [n], weight of the training rows that reach the node
    root: Array  # int32 [trees]
    depth: int  # levels from a root to the deepest leaf
    outputs: int  # raw answers per row
    link: Link
    base: Array  # float64 [outputs]
    weight: Array | None = None  # float64 [trees]: the answer is their weighted mean; None: the sum
    target: Array | None = None  # int32 [trees]; None: every tree adds to all `outputs`
    blocks: tuple[int, ...] = ()
    slope: float = 1.0
    cut: float = 0.0
    cut_score: float = 0.0
    inclusive: bool = False  # raw == cut counts as above
    rounded: bool = True  # features are rounded to float32 before they are compared
    reduction: str = field(default="", compare=False)  # describes what `shrink` removed

    @property
    def trees(self) -> int:
        return len(self.root)

    @property
    def divisor(self) -> float:
        return 1.0 if self.weight is None else float(self.weight.sum())

    @property
    def leaf(self) -> Array:
        """bool [n]."""
        return np.asarray(self.left == np.arange(len(self.left)))

    def raw(self, rows: Array) -> Array:
        """Raw answers, float64 [rows, outputs]: a slow reference implementation for tests."""
        x = rows.astype(np.float32).astype(np.float64) if self.rounded else rows.astype(np.float64)
        at = np.broadcast_to(self.root, (len(x), self.trees)).copy()
        for _ in range(self.depth):
            value = np.take_along_axis(x, self.feature[at], axis=1)
            right = np.where(np.isnan(value), ~self.missing_left[at], value > self.threshold[at])
            at = self.left[at] + np.where(self.leaf[at], 0, right)
        leaves = self.values[at]
        if self.target is None:
            return np.asarray(self.base + leaves.sum(axis=1) / self.divisor)
        one_hot = np.eye(self.outputs)[self.target]
        return np.asarray(self.base + leaves[:, :, 0] @ one_hot / self.divisor)


def round_down(values: Array) -> Array:
    """The largest float32 that is not above each float64; infinities stay.

    A float32 is above a threshold exactly if it is above the threshold rounded down.
    """
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
        below = np.nextafter(single, np.float32(-np.inf))
    return np.where(single > values, below, single).astype(np.float32)
