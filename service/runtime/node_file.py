"""File format of a table of nodes: arrays in the form in which the kernel reads them.

`MAGIC`, the size of the header, CRC-32 of all that follows, the header (JSON: dtype, shape and place of each
array), and the arrays, each at a multiple of `ALIGNMENT`. The arrays are mapped into memory, not read: all
processes that serve the same file share one copy.

The kernel that runs the table checks no index, so `load` checks all of them. With a damaged file, the kernel
must neither read outside an array nor loop forever.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec
import numpy as np

from registry.errors import Refused
from registry.rows import Array
from service.runtime.column_steps import ARITHMETIC, FILL, ColumnStep
from service.runtime.nodes import Link, NodeTable, round_down

MAGIC = b"TRIVIUM FOREST 1"
PREAMBLE = struct.Struct("<16sII")
ALIGNMENT = 64
KINDS = "biufU"
"""Kinds of dtypes that a file may contain: no pickled objects."""

ARRAYS: dict[str, tuple[Any, int]] = {
    "feature": (np.int32, 1),
    "threshold": (None, 1),
    "left": (np.int32, 1),
    "missing_left": (np.bool_, 1),
    "values": (np.float64, 2),
    "root": (np.int32, 1),
    "base": (np.float64, 1),
    "weight": (np.float64, 1),
    "target": (np.int32, 1),
}
"""dtype and number of dimensions by field. Thresholds are float32, rounded down, if features are rounded."""
OPTIONAL = ("weight", "target")
NOT_STORED = ("cover", "reduction")
"""Fields that only shrinking needs."""


class Part(NamedTuple):
    """The place of an array in the file, from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


def save(nodes: NodeTable, path: Path, steps: tuple[ColumnStep, ...] = ()) -> int:
    """Write the table, and the steps that change the columns before it. Returns the size in bytes."""
    parts = {f.name: getattr(nodes, f.name) for f in fields(NodeTable) if f.name not in NOT_STORED}
    if nodes.rounded:
        parts["threshold"] = round_down(nodes.threshold)
    if steps:
        parts |= {"operations": [s.operation for s in steps], "numbers": [s.numbers for s in steps]}
    return write_parts(path, {name: np.asarray(part) for name, part in parts.items() if part is not None})


def load(path: Path, features: int) -> tuple[NodeTable, tuple[ColumnStep, ...]]:
    """Map a table for rows of `features` numbers, with its column steps. `cover` is all zeros.

    Raises `Refused` when the file is damaged or belongs to other rows.
    """
    try:
        parts = read_parts(path)
        nodes, steps = _read_nodes(parts), _read_steps(parts, features)
        _check(nodes, features)
    except Refused:
        raise
    except Exception as error:  # msgspec and numpy raise many kinds of errors for damaged files
        raise Refused(f"the table of nodes cannot be read: {type(error).__name__}") from error
    return nodes, steps


def write_parts(path: Path, parts: dict[str, Array]) -> int:
    """Write arrays by name. Returns the size in bytes."""
    header, body = {}, bytearray()
    for name, part in parts.items():
        header[name] = Part(part.dtype.str, part.shape, len(body))
        body += part.tobytes()
        body += bytes(-len(body) % ALIGNMENT)
    text = msgspec.json.encode(header)
    text += b" " * (-(PREAMBLE.size + len(text)) % ALIGNMENT)
    content = text + body
    path.write_bytes(PREAMBLE.pack(MAGIC, len(text), zlib.crc32(content)) + content)
    return path.stat().st_size


def read_parts(path: Path) -> dict[str, Array]:
    """Map the arrays of a file, by name; they are read-only. Raises `Refused` and other errors."""
    with path.open("rb") as file:
        content = np.memmap(file, np.uint8, "r")
    _require(len(content) > PREAMBLE.size, "it is too short")
    magic, size, checksum = PREAMBLE.unpack(content[: PREAMBLE.size].tobytes())
    _require(magic == MAGIC, "it is of another format")
    _require(zlib.crc32(content[PREAMBLE.size :].data) == checksum, "its checksum differs")
    start = PREAMBLE.size + size
    _require(start % ALIGNMENT == 0, "a part is not aligned")
    header = msgspec.json.decode(content[PREAMBLE.size : start].tobytes(), type=dict[str, Part])
    return {name: _map_part(content[start:], part) for name, part in header.items()}


def _map_part(body: Array, part: Part) -> Array:
    dtype = np.dtype(part.dtype)
    _require(dtype.kind in KINDS and dtype.isnative, "a part has another dtype")
    size = dtype.itemsize * math.prod(part.shape)
    valid = min(part.shape, default=0) >= 0 <= part.offset and part.offset + size <= len(body)
    _require(valid and part.offset % ALIGNMENT == 0, "a part is outside the file")
    return np.asarray(body[part.offset : part.offset + size]).view(dtype).reshape(part.shape)


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
        expected = dtype or (np.float32 if parts["rounded"] else np.float64)
        right_form = parts[name].dtype == expected and parts[name].ndim == dimensions
        _require(right_form, f"{name} has another dtype or another number of dimensions")
        columns[name] = parts[name]
    others = (f.name for f in fields(NodeTable) if f.name not in (*ARRAYS, *NOT_STORED))
    columns |= {name: parts[name].tolist() for name in others}
    columns["blocks"] = tuple(columns["blocks"])
    return NodeTable(**columns, cover=np.zeros(len(columns["left"])))


def _check(nodes: NodeTable, features: int) -> None:
    size, leaf = len(nodes.left), nodes.leaf
    lengths = {len(a) for a in (nodes.feature, nodes.threshold, nodes.missing_left, nodes.values)}
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
    floats = (nodes.slope, nodes.cut, nodes.cut_score)
    scalars = all(type(x) is float for x in floats) and type(nodes.inclusive) is type(nodes.rounded) is bool
    _require(scalars and all(type(k) is int for k in (nodes.outputs, *nodes.blocks)), "unknown answers")
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
