"""The table of nodes as a file, for the runtime that answers from it: arrays in an .npz, nothing pickled.

A kernel follows the table without looking where it leads, so `load` checks all of it: no file, however it was
damaged, makes it read beside an array or walk for ever.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np

from registry.errors import Refused
from registry.rows import Array
from service.runtime.column_steps import ARITHMETIC, FILL, Step
from service.runtime.nodes import Link, Nodes

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
LEFT_OUT = ("cover", "given_up")
"""Only shrinking asks for them. Of `values`, the inner nodes' zeros are left out too."""
OPTIONAL = ("weight", "target")


def save(nodes: Nodes, path: Path, steps: tuple[Step, ...] = ()) -> int:
    """With what is done to the columns before. Returns the bytes written."""
    parts = {f.name: getattr(nodes, f.name) for f in fields(Nodes) if f.name not in LEFT_OUT}
    parts["values"] = nodes.values[nodes.leaf]
    if steps:
        parts |= {"operations": [s.operation for s in steps], "numbers": [s.numbers for s in steps]}
    with path.open("wb") as file:
        np.savez(file, **{name: part for name, part in parts.items() if part is not None})
    return path.stat().st_size


def load(path: Path, features: int) -> tuple[Nodes, tuple[Step, ...]]:
    """What was saved, for rows of so many features; `cover` is zeros. Raises `Refused` for anything else."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as parts:
            nodes, steps = _read(dict(parts)), _steps(dict(parts), features)
        _check(nodes, features)
    except Refused:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise anything for what they cannot read
        raise Refused(f"the table of nodes cannot be read: {type(error).__name__}") from error
    return nodes, steps


def _steps(parts: dict[str, Array], features: int) -> tuple[Step, ...]:
    if "operations" not in parts:
        return ()
    operations, numbers = parts["operations"].tolist(), parts["numbers"]
    _require(set(operations) <= {*ARITHMETIC, FILL}, "it has unknown steps")
    _require(
        numbers.shape == (len(operations), features) and numbers.dtype == np.float64, "its steps are cut"
    )
    return tuple(map(Step, operations, numbers))


def _read(parts: dict[str, Array]) -> Nodes:
    made: dict[str, Any] = {}
    for name, (dtype, dimensions) in ARRAYS.items():
        if name in OPTIONAL and name not in parts:
            made[name] = None
            continue
        _require(parts[name].dtype == dtype and parts[name].ndim == dimensions, f"{name} has another form")
        made[name] = np.ascontiguousarray(parts[name])
    made |= {f.name: parts[f.name].tolist() for f in fields(Nodes) if f.name not in (*ARRAYS, *LEFT_OUT)}
    made["blocks"] = tuple(made["blocks"])
    size = len(made["left"])
    values = np.zeros((size, made["values"].shape[1]))
    values[made["left"] == np.arange(size)] = made["values"]
    return Nodes(**{**made, "values": values, "cover": np.zeros(size)})


def _check(nodes: Nodes, features: int) -> None:
    size, leaf = len(nodes.left), nodes.leaf
    lengths = {len(a) for a in (nodes.feature, nodes.threshold, nodes.missing_left)}
    _require(lengths == {size} and nodes.trees > 0, "its columns differ in length")
    _require(bool(((nodes.feature >= 0) & (nodes.feature < features)).all()), "it asks for unknown features")
    # Every node is one parent's child or a root, and lies behind its parent: paths end, and none is shared.
    inner = nodes.left[~leaf]
    _require(bool((inner > np.flatnonzero(~leaf)).all()), "its nodes lead back")
    places = np.concatenate([nodes.root, inner, inner + 1])
    _require(np.array_equal(np.sort(places), np.arange(size)), "its nodes are not a forest")
    stays = (nodes.threshold[leaf] == np.inf) & nodes.missing_left[leaf]
    _require(bool(stays.all()), "its leaves go on")
    _require(nodes.outputs == len(nodes.base) > 0 and nodes.link in get_args(Link), "it has no such answers")
    if nodes.target is None:
        _require(nodes.values.shape[1] == nodes.outputs, "its leaves have another width than its answers")
    else:
        known = (nodes.target >= 0) & (nodes.target < nodes.outputs)
        _require(nodes.values.shape[1] == 1 and bool(known.all()), "its trees add to unknown answers")
        _require(len(nodes.target) == nodes.trees, "its columns differ in length")
    _require(nodes.weight is None or len(nodes.weight) == nodes.trees, "its columns differ in length")
    if nodes.link == "fractions":
        _require(sum(nodes.blocks) == nodes.outputs and min(nodes.blocks) > 0, "it has no such answers")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Refused(f"the table of nodes is damaged: {otherwise}")
