"""Runtime for tree ensembles in batch scoring: a table of nodes in memory.

Imports numpy and numba. Importing numba takes 0.3 s, so web processes do not import this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from registry.errors import Invalid, Refused, Unavailable
from registry.rows import NUMPY_DTYPES, Array, Outputs, Rows
from registry.signature import Output, Signature
from service.runtime import column_steps, forest_kernel, node_file
from service.runtime.float32_range import require_float32
from service.runtime.nodes import NodeTable, round_down

BLOCK = 256
"""Rows per block. With 30 features, a block and one tree fit into a core's second-level cache."""
BLOCK_NUMBERS = 1 << 17
"""Limit of the numbers in a block: blocks of wide rows have fewer rows."""
UNBALANCED = 1.5
"""A tree this many times as deep as its mean leaf is unbalanced.

In unbalanced trees, only the rows that are not at a leaf yet go below the mean depth.
"""


class KernelTable(NamedTuple):
    """The arguments of `forest_kernel.add_leaves` between `rows` and `block`."""

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
    """Thread-safe: a call uses one thread, without a lock or the GIL. `bytes` is the size of the table."""

    def __init__(self, path: Path, signature: Signature) -> None:
        """Raises `Unavailable` when the file is damaged or does not fit the signature."""
        if not signature.numeric:
            raise Unavailable("a table of nodes does not support text features")
        self._width = len(signature.inputs)
        try:
            self._nodes, self._steps = node_file.load(path, self._width)
        except Refused as error:
            raise Unavailable(str(error)) from error
        self._table = _kernel_table(self._nodes)
        self.bytes = sum(a.nbytes for a in self._table)
        self._inputs, self._outputs = signature.inputs, signature.outputs
        self._classes = {o.name: _classes(o) for o in signature.outputs if _is_class(o)}
        self._check_signature()

    def close(self) -> None:
        """Do nothing: the table needs no cleanup."""

    def run(self, rows: Rows) -> Outputs:
        """Answer `rows`. Raises `Invalid` for rows of another width, or that the trees themselves refuse."""
        matrix = column_steps.apply_steps(self._steps, _matrix(rows, self._width))
        if self._nodes.rounded:
            require_float32(Rows(matrix=matrix), self._inputs)
        raw = self._raw(matrix)
        answered = _LINKS[self._nodes.link](self._nodes, raw)
        return {o.name: self._typed(o, answered[o.name]) for o in self._outputs}

    def _raw(self, matrix: Array) -> Array:
        """Raw answers, float64 [rows, outputs]."""
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
        """Convert to the signature's dtype and shape, and class indices to classes."""
        if output.name in self._classes:
            return self._classes[output.name][answer]
        return answer.reshape(-1, *output.shape[1:]).astype(NUMPY_DTYPES[output.dtype], copy=False)

    def _check_signature(self) -> None:
        """Raises `Unavailable` when the table does not give the outputs of the signature."""
        try:
            answered = self.run(Rows(matrix=np.zeros((2, self._width))))
            if any(len(a) != 2 for a in answered.values()):
                raise ValueError("the number of answers differs from the number of rows")
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise Unavailable("the table of nodes does not give the outputs of the signature") from error


def _kernel_table(nodes: NodeTable) -> KernelTable:
    missing_right = np.empty(0, np.bool_) if nodes.missing_left.all() else ~nodes.missing_left
    target = np.empty(0, np.int32) if nodes.target is None else nodes.target
    depth, mean = _depths(nodes)
    shallow = np.where(depth > UNBALANCED * mean, mean, depth)
    # Views do not copy the large arrays. All values are 0 or above.
    feature, left, root, target = (a.view(np.uint32) for a in (nodes.feature, nodes.left, nodes.root, target))
    threshold = round_down(nodes.threshold) if nodes.rounded else nodes.threshold
    levels = shallow.astype(np.uint32), depth.astype(np.uint32)
    return KernelTable(feature, threshold, left, missing_right, nodes.values, root, target, *levels)


def _depths(nodes: NodeTable) -> tuple[Array, Array]:
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


def _matrix(rows: Rows, width: int) -> Array:
    """float64 [n, features] in C order. Raises `Invalid` for another width."""
    if rows.matrix is not None:
        matrix = rows.matrix
    else:
        assert rows.columns is not None
        matrix = np.column_stack(rows.columns)
    if matrix.ndim != 2 or matrix.shape[1] != width:
        raise Invalid(f"the model has {width} features, the rows have {matrix.shape[-1]}")
    return np.require(matrix, np.float64, ["C", "A"])


def _is_class(output: Output) -> bool:
    return output.classes is not None and output.name.rpartition(".")[2] == "label"


def _classes(output: Output) -> Array:
    return np.array(output.classes, dtype=NUMPY_DTYPES[output.dtype])


def _values(nodes: NodeTable, raw: Array) -> Outputs:
    return {"value": raw[:, 0], "values": raw}


def _exponentials(nodes: NodeTable, raw: Array) -> Outputs:
    return _values(nodes, np.exp(raw))


def _fractions(nodes: NodeTable, raw: Array) -> Outputs:
    ends = np.cumsum(nodes.blocks)[:-1]
    answered: Outputs = {}
    for i, probabilities in enumerate(np.split(raw, ends, axis=1)):
        prefix = f"y{i}." if len(nodes.blocks) > 1 else ""
        answered |= {
            f"{prefix}label": probabilities.argmax(axis=1),
            f"{prefix}probabilities": probabilities,
        }
    return answered


def _sigmoid(nodes: NodeTable, raw: Array) -> Outputs:
    with np.errstate(over="ignore"):
        second = 1.0 / (1.0 + np.exp(-nodes.slope * raw[:, 0]))
    probabilities = np.column_stack([1.0 - second, second])
    return {"label": _above_cut(nodes, raw).astype(np.intp), "probabilities": probabilities}


def _softmax(nodes: NodeTable, raw: Array) -> Outputs:
    powers = np.exp(nodes.slope * (raw - raw.max(axis=1, keepdims=True)))
    return {"label": raw.argmax(axis=1), "probabilities": powers / powers.sum(axis=1, keepdims=True)}


def _isolation(nodes: NodeTable, raw: Array) -> Outputs:
    label = np.where(_above_cut(nodes, raw), 1, -1)
    return {"label": label, "score": nodes.cut_score - 2.0 ** (-nodes.slope * raw[:, 0])}


def _above_cut(nodes: NodeTable, raw: Array) -> Array:
    return np.asarray(raw[:, 0] >= nodes.cut if nodes.inclusive else raw[:, 0] > nodes.cut)


_LINKS = {
    "identity": _values,
    "exp": _exponentials,
    "fractions": _fractions,
    "sigmoid": _sigmoid,
    "softmax": _softmax,
    "isolation": _isolation,
}
