"""The inner loop of `forest_runtime`, compiled by numba: find the leaf of each row and add up its values.

The loop takes a block of rows, one tree at a time and one level at a time, so that the tree and the block
stay in the fastest cache and the rows of a level do not wait for each other. It checks no index;
`service/runtime/node_file.py` has checked the table.

Importing this module compiles it, or loads the code that an earlier import compiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from registry.rows import Array
from service.runtime.numba_cache import compiled, inlined

ROWS = types.Array(types.float64, 2, "C", readonly=True)  # matches writable arrays too
UINT32, BOOL, FLOAT64 = types.uint32[::1], types.boolean[::1], types.float64[:, ::1]
SIGNATURES = [
    types.void(
        ROWS, UINT32, x[::1], UINT32, BOOL, FLOAT64, UINT32, UINT32, UINT32, UINT32, x[:, ::1], FLOAT64
    )
    for x in (types.float32, types.float64)
]


@inlined
def fill_block(rows: Array, start: int, size: int, block: Array) -> bool:
    """Copy rows into the block. Returns whether they contain a NaN."""
    has_nan = False
    for r in range(size):
        for f in range(rows.shape[1]):
            value = rows[start + r, f]
            has_nan |= value != value
            block[r, f] = value
    return has_nan


@inlined
def descend(block: Array, feature: Array, threshold: Array, left: Array, levels: int, at: Array) -> None:
    for _ in range(levels):
        for r in range(len(at)):
            i = at[r]
            at[r] = left[i] + np.uint32(block[r, feature[i]] > threshold[i])


@inlined
def descend_with_nan(
    block: Array, feature: Array, threshold: Array, left: Array, missing_right: Array, levels: int, at: Array
) -> None:
    for _ in range(levels):
        for r in range(len(at)):
            i = at[r]
            value = block[r, feature[i]]
            right = (value > threshold[i]) | (missing_right[i] & (value != value))
            at[r] = left[i] + np.uint32(right)


@inlined
def descend_to_leaves(
    block: Array,
    feature: Array,
    threshold: Array,
    left: Array,
    missing_right: Array,
    has_nan: bool,
    at: Array,
    unfinished: Array,
) -> None:
    """Descend level by level with the rows that are not at a leaf. `unfinished` is scratch."""
    count = 0
    for r in range(len(at)):
        unfinished[count] = r
        count += left[at[r]] != at[r]
    while count > 0:
        remaining = 0
        for j in range(count):
            r = unfinished[j]
            i = at[r]
            value = block[r, feature[i]]
            right = value > threshold[i]
            if has_nan:
                right |= missing_right[i] & (value != value)
            i = left[i] + np.uint32(right)
            at[r] = i
            unfinished[remaining] = r
            remaining += left[i] != i
        count = remaining


@inlined
def add(values: Array, at: Array, out: Array) -> None:
    """Add the values of each row's leaf to all outputs.

    The loops for one and two outputs are written out: a general loop costs a tenth of the descent's time.
    """
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


@inlined
def add_to(values: Array, at: Array, out: Array, output: Any) -> None:
    """Add the single value of each row's leaf to one output."""
    for r in range(len(at)):
        out[r, output] += values[at[r], 0]


@compiled(*SIGNATURES)
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
    """Add every tree's leaf values to `out` float64 [rows, outputs], in the order of the trees.

    `rows` float64 [rows, features] are rounded to the dtype of `threshold` [nodes] in `block` [m, features],
    which is scratch. `feature`, `left`, `root`, `target`, `shallow` and `depth` are uint32: with unsigned
    indices, the compiled code need not test for negative ones. `missing_right` is empty if NaN always goes
    left, `target` if every tree adds to all outputs. All rows descend `shallow[t]` levels;
    then only the rows that are not at a leaf descend, to `depth[t]`.
    """
    at = np.empty(len(block), np.uint32)
    unfinished = np.empty(len(block), np.uint32)
    for start in range(0, len(rows), len(block)):
        size = min(len(block), len(rows) - start)
        has_nan = fill_block(rows, start, size, block) and len(missing_right) > 0
        for tree in range(len(root)):
            at[:size] = root[tree]
            if has_nan:
                descend_with_nan(block, feature, threshold, left, missing_right, shallow[tree], at[:size])
            else:
                descend(block, feature, threshold, left, shallow[tree], at[:size])
            if shallow[tree] < depth[tree]:
                descend_to_leaves(
                    block, feature, threshold, left, missing_right, has_nan, at[:size], unfinished
                )
            if len(target) == 0:
                add(values, at[:size], out[start : start + size])
            else:
                add_to(values, at[:size], out[start : start + size], target[tree])
