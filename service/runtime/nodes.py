"""Any tree ensemble of scikit-learn as one flat table of nodes: what edge export and batch scoring run on.

A node's children lie side by side, so a step down is `i = left[i] + (x[feature[i]] > threshold[i])`, and a
leaf is its own `left`. This holds the table and how the trees' leaves become an answer; what each estimator
puts into it is `service/compiler/trees/flatten.py`, and making it smaller `service/compiler/trees/shrink.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from registry.rows import Array

Link = Literal["identity", "fractions", "sigmoid", "softmax", "exp", "isolation"]


@dataclass(frozen=True)
class Nodes:
    """`n` nodes of all trees. A tree's nodes are contiguous, its root first, siblings adjacent.

    The raw answer `k` is `base[k] + sum(leaf values of the trees) / divisor`, where a tree of width 1 with
    `target` set adds to that answer alone. Leaf values hold the trees' weights already. Then `link`:

    - `identity`: the value. `exp`: its exponential.
    - `fractions`: class probabilities, in `blocks` of classes by output; the label is the first largest.
    - `sigmoid`: `1 / (1 + exp(-slope * raw))` of the second class, the label where raw is beyond `cut`.
    - `softmax`: of `slope * raw`; the first largest is the label.
    - `isolation`: score `cut_score - 2 ** (-slope * raw)`, label 1 where raw is beyond `cut`, else -1.
    """

    feature: Array  # int32 [n], 0 at leaves
    threshold: Array  # float64 [n], as fitted; +inf at leaves
    left: Array  # int32 [n], the left child, the right one is the next; a leaf's is itself
    missing_left: Array  # bool [n], where NaN goes; True at leaves and where the estimator refuses NaN
    values: Array  # float64 [n, width], 0 at inner nodes
    cover: Array  # float64 [n]
    root: Array  # int32 [trees]
    depth: int  # steps from a root to the deepest leaf
    outputs: int  # raw answers for a row
    link: Link
    base: Array  # float64 [outputs]
    weight: Array | None = None  # float64 [trees]: the answer is their weighted mean; None: the sum
    target: Array | None = None  # int32 [trees]; None: every tree adds to all `outputs`
    blocks: tuple[int, ...] = ()
    slope: float = 1.0
    cut: float = 0.0
    cut_score: float = 0.0
    inclusive: bool = False  # the label turns at `cut` itself, not just beyond
    rounded: bool = True  # features are rounded to float32 before they are compared
    given_up: str = field(default="", compare=False)  # what shrinking took away, for people

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
        """float64 [rows, outputs], computed slowly and plainly: the meaning of this table, for tests."""
        x = rows.astype(np.float32).astype(np.float64) if self.rounded else rows.astype(np.float64)
        at = np.broadcast_to(self.root, (len(x), self.trees)).copy()
        for _ in range(self.depth):
            value = np.take_along_axis(x, self.feature[at], axis=1)
            right = np.where(np.isnan(value), ~self.missing_left[at], value > self.threshold[at])
            at = self.left[at] + np.where(self.leaf[at], 0, right)
        leaves = self.values[at]
        if self.target is None:
            return np.asarray(self.base + leaves.sum(axis=1) / self.divisor)
        chosen = np.eye(self.outputs)[self.target]
        return np.asarray(self.base + leaves[:, :, 0] @ chosen / self.divisor)
