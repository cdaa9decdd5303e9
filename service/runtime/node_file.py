"""File format of a table of nodes: arrays in an .npz, without pickled objects.

The kernel that runs the table checks no index, so `load` checks all of them. With a damaged file, the kernel
must neither read outside an array nor loop forever.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np

from registry.errors import Refused
from registry.rows import Array
from service.runtime.column_steps import ARITHMETIC, FILL, ColumnStep
from service.runtime.nodes import Link, NodeTable

ARRAYS: dict[str, tuple[Any, int]] = {
    "feature": (np.int32, 1),
    "threshold": (np.float64, 1),
    "left": (np.int32, 1),
    "missing_left": (np.bool_, 1),
    "values": (np.float64, 2),
    "root": (np.int32, 1),
    "base": (np.float64, 1),
    "weight": (np.float64, 1),
    "target": (np.int32, 1),
}
"""dtype and number of dimensions by field."""
OPTIONAL = ("weight", "target")
NOT_STORED = ("cover", "reduction")
"""Fields that only shrinking needs. Of `values`, only the rows of the leaves are stored."""


def save(nodes: NodeTable, path: Path, steps: tuple[ColumnStep, ...] = ()) -> int:
    """Write the table, and the steps that change the columns before it. Returns the size in bytes."""
    parts = {f.name: getattr(nodes, f.name) for f in fields(NodeTable) if f.name not in NOT_STORED}
    parts["values"] = nodes.values[nodes.leaf]
    if steps:
        parts |= {"operations": [s.operation for s in steps], "numbers": [s.numbers for s in steps]}
    with path.open("wb") as file:
        np.savez(file, **{name: part for name, part in parts.items() if part is not None})
    return path.stat().st_size


def load(path: Path, features: int) -> tuple[NodeTable, tuple[ColumnStep, ...]]:
    """Read a table for rows of `features` numbers, with its column steps. `cover` is all zeros.

    Raises `Refused` when the file is damaged or belongs to other rows.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as parts:
            nodes, steps = _read_nodes(dict(parts)), _read_steps(dict(parts), features)
        _check(nodes, features)
    except Refused:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many kinds of errors for damaged files
        raise Refused(f"the table of nodes cannot be read: {type(error).__name__}") from error
    return nodes, steps


def _read_steps(parts: dict[str, Array], features: int) -> tuple[ColumnStep, ...]:
    if "operations" not in parts:
        return ()
    operations, numbers = parts["operations"].tolist(), parts["numbers"]
    _require(set(operations) <= {*ARITHMETIC, FILL}, "unknown column step")
    complete = numbers.shape == (len(operations), features) and numbers.dtype == np.float64
    _require(complete, "incomplete column steps")
    return tuple(map(ColumnStep, operations, numbers))


def _read_nodes(parts: dict[str, Array]) -> NodeTable:
    columns: dict[str, Any] = {}
    for name, (dtype, dimensions) in ARRAYS.items():
        if name in OPTIONAL and name not in parts:
            columns[name] = None
            continue
        right_form = parts[name].dtype == dtype and parts[name].ndim == dimensions
        _require(right_form, f"{name} has another dtype or another number of dimensions")
        columns[name] = np.ascontiguousarray(parts[name])
    others = (f.name for f in fields(NodeTable) if f.name not in (*ARRAYS, *NOT_STORED))
    columns |= {name: parts[name].tolist() for name in others}
    columns["blocks"] = tuple(columns["blocks"])
    size = len(columns["left"])
    values = np.zeros((size, columns["values"].shape[1]))
    values[columns["left"] == np.arange(size)] = columns["values"]
    return NodeTable(**{**columns, "values": values, "cover": np.zeros(size)})


def _check(nodes: NodeTable, features: int) -> None:
    size, leaf = len(nodes.left), nodes.leaf
    lengths = {len(a) for a in (nodes.feature, nodes.threshold, nodes.missing_left)}
    _require(lengths == {size} and nodes.trees > 0, "columns of different lengths")
    _require(bool(((nodes.feature >= 0) & (nodes.feature < features)).all()), "unknown features")
    # Every node is a root or the child of one parent, and comes after its parent: each path ends at a leaf.
    children = nodes.left[~leaf]
    _require(bool((children > np.flatnonzero(~leaf)).all()), "a child before its parent")
    places = np.concatenate([nodes.root, children, children + 1])
    _require(np.array_equal(np.sort(places), np.arange(size)), "the nodes are not a forest")
    ends = (nodes.threshold[leaf] == np.inf) & nodes.missing_left[leaf]
    _require(bool(ends.all()), "a leaf with a right child")
    _require(nodes.outputs == len(nodes.base) > 0 and nodes.link in get_args(Link), "unknown answers")
    if nodes.target is None:
        _require(nodes.values.shape[1] == nodes.outputs, "leaves and answers of different widths")
    else:
        in_range = (nodes.target >= 0) & (nodes.target < nodes.outputs)
        _require(nodes.values.shape[1] == 1 and bool(in_range.all()), "a tree adds to an unknown answer")
        _require(len(nodes.target) == nodes.trees, "columns of different lengths")
    _require(nodes.weight is None or len(nodes.weight) == nodes.trees, "columns of different lengths")
    if nodes.link == "fractions":
        _require(sum(nodes.blocks) == nodes.outputs and min(nodes.blocks) > 0, "unknown answers")


def _require(condition: bool, fault: str) -> None:
    if not condition:
        raise Refused(f"the table of nodes is damaged: {fault}")
