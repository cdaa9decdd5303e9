"""A forest's table of nodes in memory, answering rows: what batch scoring runs tree ensembles on.

Imports numpy and numba only, and numba takes 0.3 s: a web process never imports this.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from registry.errors import Invalid, Refused, Unavailable
from registry.rows import NUMPY, Array, Outputs, Rows
from registry.signature import Output, Signature
from service.runtime import column_steps, forest_kernel, node_file
from service.runtime.nodes import Nodes

BLOCK = 256
"""Rows at a time; with 30 features they stay in a core's second cache with any one tree."""
BLOCK_NUMBERS = 1 << 17
"""Most numbers in a block: wide rows come fewer at a time."""
LOPSIDED = 1.5
"""A tree this many times as deep as its mean leaf is walked to the end only by the rows that go so far."""


class Table(NamedTuple):
    """What `kernel.add_leaves` takes between the rows and the answers."""

    feature: Array
    threshold: Array
    left: Array
    missing_right: Array
    values: Array
    root: Array
    target: Array
    shallow: Array
    depth: Array


class ForestRuntime:
    """Thread-safe: a call uses one thread, and holds no lock and no GIL. `bytes` is what the table takes."""

    def __init__(self, path: Path, signature: Signature) -> None:
        """Raises `Unavailable` when the file is damaged or does not fit the signature."""
        if not signature.numeric:
            raise Unavailable("a table of nodes takes no text")
        self._width = len(signature.inputs)
        try:
            self._nodes, self._steps = node_file.load(path, self._width)
        except Refused as error:
            raise Unavailable(str(error)) from error
        self._table = _table(self._nodes)
        self.bytes = sum(a.nbytes for a in self._table)
        self._outputs = signature.outputs
        self._classes = {o.name: _classes(o) for o in signature.outputs if _is_class(o)}
        self._fit()

    def close(self) -> None:
        """Nothing to end: the table goes with its last user."""

    def run(self, rows: Rows) -> Outputs:
        """Raises `Invalid` for rows of another width."""
        raw = self._raw(column_steps.apply(self._steps, _matrix(rows, self._width)))
        answered = _LINKS[self._nodes.link](self._nodes, raw)
        return {o.name: self._typed(o, answered[o.name]) for o in self._outputs}

    def _raw(self, matrix: Array) -> Array:
        """float64 [rows, outputs]: what the link takes."""
        nodes = self._nodes
        out = np.empty((len(matrix), nodes.outputs))
        out[:] = nodes.base * nodes.divisor
        size = max(1, min(BLOCK, BLOCK_NUMBERS // self._width))
        block = np.empty((size, self._width), self._table.threshold.dtype)
        forest_kernel.add_leaves(matrix, *self._table, block, out)
        if nodes.weight is not None:
            out /= nodes.divisor
        return out

    def _typed(self, output: Output, answer: Array) -> Array:
        """In the signature's dtype and shape; indices of classes become the classes."""
        if output.name in self._classes:
            return self._classes[output.name][answer]
        return answer.reshape(-1, *output.shape[1:]).astype(NUMPY[output.dtype], copy=False)

    def _fit(self) -> None:
        """Raises `Unavailable` when the table does not answer what the signature promises."""
        try:
            answered = self.run(Rows(matrix=np.zeros((2, self._width))))
            if any(len(a) != 2 for a in answered.values()):
                raise ValueError("not one answer a row")
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise Unavailable("the table of nodes does not answer as the signature says") from error


def _table(nodes: Nodes) -> Table:
    holes = np.empty(0, np.bool_) if nodes.missing_left.all() else ~nodes.missing_left
    target = np.empty(0, np.int32) if nodes.target is None else nodes.target
    depth, mean = _depths(nodes)
    shallow = np.where(depth > LOPSIDED * mean, mean, depth)
    # None of them is negative; the large ones are not copied.
    feature, left, root, target = (a.view(np.uint32) for a in (nodes.feature, nodes.left, nodes.root, target))
    threshold = _down(nodes.threshold) if nodes.rounded else nodes.threshold
    levels = shallow.astype(np.uint32), depth.astype(np.uint32)
    return Table(feature, threshold, left, holes, nodes.values, root, target, *levels)


def _down(threshold: Array) -> Array:
    """float32, rounded down: no float32 lies between it and the threshold, so it splits them alike."""
    with np.errstate(over="ignore"):
        single = threshold.astype(np.float32)
    lower = np.nextafter(single, np.float32(-np.inf))
    return np.where(single.astype(np.float64) > threshold, lower, single)


def _depths(nodes: Nodes) -> tuple[Array, Array]:
    """float64 [trees]: levels below the root, and the mean of them over the leaves."""
    leaf = nodes.leaf
    depth, steps, leaves = np.zeros((3, nodes.trees))
    level, owner = nodes.root, np.arange(nodes.trees)
    below = 0
    while len(level):
        depth[owner] = below
        found = np.bincount(owner[leaf[level]], minlength=nodes.trees)
        leaves += found
        steps += below * found
        inner = ~leaf[level]
        level, owner = level[inner], owner[inner]
        level = np.concatenate([nodes.left[level], nodes.left[level] + 1])
        owner = np.concatenate([owner, owner])
        below += 1
    return depth, steps / leaves


def _matrix(rows: Rows, width: int) -> Array:
    """float64 [n, features], C order."""
    if rows.matrix is not None:
        matrix = rows.matrix
    else:
        assert rows.columns is not None
        matrix = np.column_stack(rows.columns)
    if matrix.ndim != 2 or matrix.shape[1] != width:
        raise Invalid(f"the model takes {width} features, not {matrix.shape[-1]}")
    return np.require(matrix, np.float64, ["C", "A"])


def _is_class(output: Output) -> bool:
    return output.classes is not None and output.name.rpartition(".")[2] == "label"


def _classes(output: Output) -> Array:
    return np.array(output.classes, dtype=NUMPY[output.dtype])


def _values(nodes: Nodes, raw: Array) -> Outputs:
    return {"value": raw[:, 0], "values": raw}


def _exponentials(nodes: Nodes, raw: Array) -> Outputs:
    return _values(nodes, np.exp(raw))


def _fractions(nodes: Nodes, raw: Array) -> Outputs:
    ends = np.cumsum(nodes.blocks)[:-1]
    answered: Outputs = {}
    for i, chances in enumerate(np.split(raw, ends, axis=1)):
        before = f"y{i}." if len(nodes.blocks) > 1 else ""
        answered |= {f"{before}label": chances.argmax(axis=1), f"{before}probabilities": chances}
    return answered


def _sigmoid(nodes: Nodes, raw: Array) -> Outputs:
    with np.errstate(over="ignore"):
        second = 1.0 / (1.0 + np.exp(-nodes.slope * raw[:, 0]))
    chances = np.column_stack([1.0 - second, second])
    return {"label": _beyond(nodes, raw).astype(np.intp), "probabilities": chances}


def _softmax(nodes: Nodes, raw: Array) -> Outputs:
    powers = np.exp(nodes.slope * (raw - raw.max(axis=1, keepdims=True)))
    return {"label": raw.argmax(axis=1), "probabilities": powers / powers.sum(axis=1, keepdims=True)}


def _isolation(nodes: Nodes, raw: Array) -> Outputs:
    label = np.where(_beyond(nodes, raw), 1, -1)
    return {"label": label, "score": nodes.cut_score - 2.0 ** (-nodes.slope * raw[:, 0])}


def _beyond(nodes: Nodes, raw: Array) -> Array:
    return np.asarray(raw[:, 0] >= nodes.cut if nodes.inclusive else raw[:, 0] > nodes.cut)


_LINKS = {
    "identity": _values,
    "exp": _exponentials,
    "fractions": _fractions,
    "sigmoid": _sigmoid,
    "softmax": _softmax,
    "isolation": _isolation,
}
