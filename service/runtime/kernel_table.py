"""What the compiled kernel reads of a table of nodes: its arrays, and one record of addresses and numbers.

Imports numpy only: processes that run compiled code need no numba.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from registry.errors import Unavailable
from registry.rows import Array
from service.runtime.column_steps import ARITHMETIC, FILL, ColumnStep
from service.runtime.nodes import Link, NodeTable

BLOCK = 256
"""Rows per block. With 30 features, a block and one tree fit into a core's second-level cache."""
BLOCK_NUMBERS = 1 << 17
"""Limit of the numbers in a block: blocks of wide rows have fewer rows."""
FEW_ROWS = 10
"""Calls with fewer rows descend all trees of a row together, calls with more all rows of a block."""
UNBALANCED = 1.5
"""A tree this many times as deep as its mean leaf is unbalanced.

In unbalanced trees, only the rows that are not at a leaf yet go below the mean depth.
"""

LINKS: tuple[Link, ...] = ("identity", "exp", "fractions", "sigmoid", "softmax", "isolation")
"""By the number that stands for them in a record."""
OPERATIONS = (*ARITHMETIC, FILL)
"""Column steps by the number that stands for them in a record."""

BEYOND_FLOAT32, NOT_FINITE = 1, 2
"""Bits of the kernel's result: a number beyond float32, which trees refuse; an answer that is not finite."""

LIBRARY_FUNCTIONS = ("exp", "exp2", "pow", "memset", "memcpy", "memmove")
"""The only functions outside the compiled code that it may call: those of the C library."""

ADDRESSES = (
    *("feature", "threshold", "left", "missing_right", "values"),
    *("root", "target", "shallow", "depth", "base", "blocks", "operations", "numbers"),
)
RECORD = np.dtype(
    [(name, np.uint64) for name in ADDRESSES]
    + [
        (name, np.int64)
        for name in (
            *(
                "nodes",
                "leaf_width",
                "trees",
                "outputs",
                "width",
                "answers",
                "labels",
                "block_count",
                "steps",
            ),
            *("data_offset", "link", "inclusive", "few_rows", "block_rows", "has_missing", "has_target"),
            *("few_shallow", "few_depth"),
        )
    ]
    + [(name, np.float64) for name in ("divisor", "slope", "cut", "cut_score")]
)
"""The kernel's first argument. `data_offset` is the place of the data's address in an array object."""


class NotCompiled(Unavailable):
    """No process has compiled the kernel on this machine yet."""


class KernelTable(NamedTuple):
    """The arrays of a table in the form of the kernel.

    `feature`, `left`, `root`, `target`, `shallow` and `depth` are uint32: with unsigned indices, the compiled
    code need not test for negative ones. All rows descend `shallow[t]` levels of tree `t`; then only the rows
    that are not at a leaf descend, to `depth[t]`. `missing_right` is empty if NaN always goes left, `target`
    if every tree adds to all outputs.
    """

    feature: Array
    threshold: Array  # float32 rounded down, or float64
    left: Array
    missing_right: Array
    values: Array
    root: Array
    target: Array
    shallow: Array
    depth: Array
    base: Array
    blocks: Array
    operations: Array
    numbers: Array


def kernel_table(nodes: NodeTable, steps: tuple[ColumnStep, ...], width: int) -> KernelTable:
    """Convert a table that `node_file` has read, for rows of `width` numbers. Its arrays are not copied."""
    missing_right = np.empty(0, np.bool_) if nodes.missing_left.all() else ~nodes.missing_left
    target = np.empty(0, np.int32) if nodes.target is None else nodes.target
    depth, mean = tree_depths(nodes)
    shallow = np.where(depth > UNBALANCED * mean, mean, depth)
    feature, left, root, target = (a.view(np.uint32) for a in (nodes.feature, nodes.left, nodes.root, target))
    return KernelTable(
        feature=feature,
        threshold=nodes.threshold,
        left=left,
        missing_right=missing_right,
        values=nodes.values,
        root=root,
        target=target,
        shallow=shallow.astype(np.uint32),
        depth=depth.astype(np.uint32),
        base=nodes.base * nodes.divisor,
        blocks=np.array(nodes.blocks or (nodes.outputs,), np.int64),
        operations=np.array([OPERATIONS.index(s.operation) for s in steps], np.int64),
        numbers=np.array([s.numbers for s in steps], np.float64).reshape(len(steps), width),
    )


def kernel_record(nodes: NodeTable, table: KernelTable, width: int) -> Array:
    """Return the record of a table. It holds addresses: the table must outlive it."""
    record = np.zeros(1, RECORD)
    for name in ADDRESSES:
        record[name] = getattr(table, name).ctypes.data
    labels = 0 if nodes.link in ("identity", "exp") else len(table.blocks) if nodes.link == "fractions" else 1
    numbers = {
        "nodes": len(table.left),
        "leaf_width": table.values.shape[1],
        "trees": nodes.trees,
        "outputs": nodes.outputs,
        "width": width,
        "answers": 2 if nodes.link == "sigmoid" else nodes.outputs,
        "labels": labels,
        "block_count": len(table.blocks),
        "steps": len(table.operations),
        "data_offset": object.__basicsize__,  # PyArrayObject: the object's header, then `char *data`
        "link": LINKS.index(nodes.link),
        "inclusive": nodes.inclusive,
        "few_rows": FEW_ROWS,
        "block_rows": max(1, min(BLOCK, BLOCK_NUMBERS // width)),
        "has_missing": len(table.missing_right) > 0,
        "has_target": len(table.target) > 0,
        "few_shallow": int(table.shallow.max()),
        "few_depth": int(table.depth.max()),
        "divisor": nodes.divisor,
        "slope": nodes.slope,
        "cut": nodes.cut,
        "cut_score": nodes.cut_score,
    }
    for name, number in numbers.items():
        record[name] = number
    return record


def tree_depths(nodes: NodeTable) -> tuple[Array, Array]:
    """The depth of each tree, and the mean depth of its leaves: float64 [trees] each."""
    leaf = nodes.leaf
    depth, steps, leaves = np.zeros((3, nodes.trees))
    level, owner = nodes.root, np.arange(nodes.trees)
    below = 0
    while len(level):
        depth[owner] = below
        counts = np.bincount(owner[leaf[level]], minlength=nodes.trees)
        leaves += counts
        steps += below * counts
        inner = ~leaf[level]
        level, owner = level[inner], owner[inner]
        level = np.concatenate([nodes.left[level], nodes.left[level] + 1])
        owner = np.concatenate([owner, owner])
        below += 1
    return depth, steps / leaves
