"""The inner loop of `forest.py`, compiled by numba: rows through trees, their leaves added up.

Blocks of rows, one tree at a time, one level at a time: the tree and the block stay in the fastest cache, and
the steps of a level do not wait for each other. Nothing here checks an index; `service/runtime/node_file.py`
has checked the table.

Importing this compiles it, or reads what an earlier import compiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from registry.rows import Array
from service.runtime.numba_cache import inner, outer

ROWS = types.Array(types.float64, 2, "C", readonly=True)  # those of arrow are; others count as such too
WHOLE, FLAG, DOUBLE = types.uint32[::1], types.boolean[::1], types.float64[:, ::1]
SIGNATURES = [
    types.void(ROWS, WHOLE, x[::1], WHOLE, FLAG, DOUBLE, WHOLE, WHOLE, WHOLE, WHOLE, x[:, ::1], DOUBLE)
    for x in (types.float32, types.float64)
]


@inner
def fill(rows: Array, start: int, size: int, block: Array) -> bool:
    """Copies rows into the block; whether there is a NaN among them."""
    holes = False
    for r in range(size):
        for f in range(rows.shape[1]):
            value = rows[start + r, f]
            holes |= value != value
            block[r, f] = value
    return holes


@inner
def walk(block: Array, feature: Array, threshold: Array, left: Array, levels: int, at: Array) -> None:
    for _ in range(levels):
        for r in range(len(at)):
            i = at[r]
            at[r] = left[i] + np.uint32(block[r, feature[i]] > threshold[i])


@inner
def walk_with_holes(
    block: Array, feature: Array, threshold: Array, left: Array, missing_right: Array, levels: int, at: Array
) -> None:
    for _ in range(levels):
        for r in range(len(at)):
            i = at[r]
            value = block[r, feature[i]]
            right = (value > threshold[i]) | (missing_right[i] & (value != value))
            at[r] = left[i] + np.uint32(right)


@inner
def finish(
    block: Array,
    feature: Array,
    threshold: Array,
    left: Array,
    missing_right: Array,
    holes: bool,
    at: Array,
    going: Array,
) -> None:
    """To the leaves: level by level those rows alone that are not there yet, their numbers in `going`."""
    count = 0
    for r in range(len(at)):
        going[count] = r
        count += left[at[r]] != at[r]
    while count > 0:
        kept = 0
        for j in range(count):
            r = going[j]
            i = at[r]
            value = block[r, feature[i]]
            right = value > threshold[i]
            if holes:
                right |= missing_right[i] & (value != value)
            i = left[i] + np.uint32(right)
            at[r] = i
            going[kept] = r
            kept += left[i] != i
        count = kept


@inner
def add(values: Array, at: Array, out: Array) -> None:
    """Each row's leaf to all of its outputs. One or two of them are written out: to loop over them takes a
    tenth of the time that the walk does."""
    if values.shape[1] == 1:
        add_to(values, at, out, 0)
    elif values.shape[1] == 2:
        for r in range(len(at)):
            i = at[r]
            out[r, 0] += values[i, 0]
            out[r, 1] += values[i, 1]
    else:
        for r in range(len(at)):
            for k in range(values.shape[1]):
                out[r, k] += values[at[r], k]


@inner
def add_to(values: Array, at: Array, out: Array, output: Any) -> None:
    for r in range(len(at)):
        out[r, output] += values[at[r], 0]


@outer(*SIGNATURES)
def add_leaves(
    rows: Array,
    feature: Array,
    threshold: Array,
    left: Array,
    missing_right: Array,
    values: Array,
    root: Array,
    target: Array,
    shallow: Array,
    depth: Array,
    block: Array,
    out: Array,
) -> None:
    """Adds every tree's leaf to `out` float64 [rows, outputs], in the order of the trees.

    `rows` float64 [rows, features] are rounded to the dtype of `threshold` [nodes] in `block` [m, features],
    which is scratch. `feature`, `left`, `root`, `target`, `shallow`, `depth` are uint32: unsigned, so that no
    index is looked at for being negative. `missing_right` is empty where NaN goes nowhere else than left,
    `target` where every tree adds to all outputs. All rows are walked `shallow[t]` levels, from there to
    `depth[t]` only those that are not at a leaf.
    """
    at = np.empty(len(block), np.uint32)
    going = np.empty(len(block), np.uint32)
    for start in range(0, len(rows), len(block)):
        size = min(len(block), len(rows) - start)
        holes = fill(rows, start, size, block) and len(missing_right) > 0
        for tree in range(len(root)):
            at[:size] = root[tree]
            if holes:
                walk_with_holes(block, feature, threshold, left, missing_right, shallow[tree], at[:size])
            else:
                walk(block, feature, threshold, left, shallow[tree], at[:size])
            if shallow[tree] < depth[tree]:
                finish(block, feature, threshold, left, missing_right, holes, at[:size], going)
            if len(target) == 0:
                add(values, at[:size], out[start : start + size])
            else:
                add_to(values, at[:size], out[start : start + size], target[tree])
