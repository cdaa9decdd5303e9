"""Runtime for tree ensembles, online and in batch jobs: a table of nodes in memory, and compiled code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from registry.errors import Invalid, Refused, Unavailable
from registry.rows import NUMPY_DTYPES, Array, Outputs, Rows
from registry.signature import Output, Signature
from service.runtime import column_steps, node_file
from service.runtime.float32_range import require_float32
from service.runtime.kernel_code import Kernel
from service.runtime.kernel_table import BEYOND_FLOAT32, NOT_FINITE, kernel_record, kernel_table
from service.runtime.nodes import NodeTable

HOLD_GIL_STEPS = 40_000
"""Calls with fewer steps down a tree, which take up to 50 us, hold the GIL.

Releasing it costs nothing while it is free, but a thread that computes gives it back only after 5 ms.
"""

_FLOAT64 = np.dtype(np.float64)

OutputBuilder = Callable[[Array, Array], Array]
"""An output's array, from `labels` int64 [n, targets] and `numbers` float64 [n, answers]."""


class ForestRuntime:
    """Thread-safe: a call uses one thread, without a lock. `bytes` is the size of the table."""

    def __init__(
        self, path: Path, signature: Signature, kernel: Kernel, requires_finite: bool = False
    ) -> None:
        """Raises `Unavailable` when the file is damaged or does not fit the signature.

        `requires_finite`: refuse rows with an infinite or missing answer.
        """
        if not signature.numeric:
            raise Unavailable("a table of nodes does not support text features")
        self._width = len(signature.inputs)
        try:
            nodes, self._steps = node_file.load(path, self._width)
        except Refused as error:
            raise Unavailable(str(error)) from error
        self._inputs = signature.inputs
        self._table = kernel_table(nodes, self._steps, self._width)  # arrays in the file
        self._record = kernel_record(nodes, self._table, self._width)  # addresses in `_table`
        self.bytes = sum(a.nbytes for a in self._table) + self._record.nbytes
        record = self._record[0]
        self._address = self._record.ctypes.data
        self._outputs, self._answers, self._labels = (
            int(record[name]) for name in ("outputs", "answers", "labels")
        )
        self._lane_rows, self._few_rows = int(record["block_rows"]), int(record["few_rows"])
        self._trees = nodes.trees
        self._row_steps = int(self._table.shallow.sum())
        self._number_bytes = self._table.threshold.itemsize
        self._few_scratch = self._scratch_size(1, self._trees)
        self._answer = kernel.float32 if nodes.rounded else kernel.float64
        self._refused_bits = BEYOND_FLOAT32 | (NOT_FINITE if requires_finite else 0)
        try:
            self._builders = [(o.name, _output_builder(o, nodes)) for o in signature.outputs]
            self._check_signature(signature)
        except (KeyError, ValueError, IndexError) as error:
            raise Unavailable("the table of nodes does not give the outputs of the signature") from error

    def close(self) -> None:
        """Do nothing: the table needs no cleanup."""

    def run(self, rows: Rows) -> Outputs:
        """Answer `rows`. Raises `Invalid` for rows of another width, or that the trees themselves refuse."""
        matrix = rows.matrix
        if (
            matrix is None
            or matrix.dtype is not _FLOAT64
            or matrix.ndim != 2
            or matrix.shape[1] != self._width
            or not (matrix.flags.c_contiguous and matrix.flags.aligned)
        ):
            matrix = _matrix(rows, self._width)
        count = len(matrix)
        numbers = np.empty((count, self._answers))
        raw = numbers if self._answers == self._outputs else np.empty((count, self._outputs))
        labels = np.empty((count, self._labels), np.int64)
        if count < self._few_rows:
            scratch = np.empty(self._few_scratch)
        else:
            lanes = min(count, self._lane_rows)
            scratch = np.empty(self._scratch_size(lanes, lanes))
        if count * self._row_steps < HOLD_GIL_STEPS:
            answer = self._answer.holding_gil
        else:
            answer = self._answer.releasing_gil
        bits = answer(self._address, matrix, count, raw, numbers, labels, scratch)
        if bits & self._refused_bits:
            self._refuse(matrix, bits)
        return {name: build(labels, numbers) for name, build in self._builders}

    def _scratch_size(self, rows: int, lanes: int) -> int:
        """Numbers of 8 bytes: the prepared rows, and two uint32 for each lane."""
        return (rows * self._width * self._number_bytes + 2 * lanes * 4 + 7) // 8

    def _refuse(self, matrix: Array, bits: int) -> None:
        if bits & BEYOND_FLOAT32:
            require_float32(Rows(matrix=column_steps.apply_steps(self._steps, matrix)), self._inputs)
        raise Invalid(
            "the model refuses these rows: an answer is not finite; the rows hold values that are too large "
            "for the model, or missing ones"
        )

    def _check_signature(self, signature: Signature) -> None:
        """Raises `ValueError` when an output has another shape than the signature's."""
        answered = self.run(Rows(matrix=np.zeros((2, self._width))))
        for output in signature.outputs:
            if answered[output.name].shape != (2, *output.shape[1:]):
                raise ValueError(output.name)


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


def _output_builder(output: Output, nodes: NodeTable) -> OutputBuilder:
    """Raises `KeyError`, `ValueError` if the table does not give the output."""
    blocks = _blocks(nodes)
    for i, block in enumerate(blocks):
        prefix = f"y{i}." if len(blocks) > 1 else ""
        if output.name == f"{prefix}label":
            return _label_builder(output, i, block.stop - block.start)
        if output.name == f"{prefix}probabilities":
            return _numbers_builder(output, block)
    part = {"identity": ("value", "values"), "exp": ("value", "values"), "isolation": ("label", "score")}[
        nodes.link
    ]
    if output.name not in part:
        raise KeyError(output.name)
    return _label_builder(output, 0, 0) if output.name == "label" else _numbers_builder(output, slice(None))


def _blocks(nodes: NodeTable) -> list[slice]:
    """The columns of each target's probabilities; none without classes."""
    if nodes.link not in ("fractions", "sigmoid", "softmax"):
        return []
    sizes = nodes.blocks if nodes.link == "fractions" else (max(2, nodes.outputs),)
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _label_builder(output: Output, target: int, count: int) -> OutputBuilder:
    """The labels of a target: of its `count` classes, or the kernel's own if the output has no classes."""
    dtype = NUMPY_DTYPES[output.dtype]
    if output.classes is None:
        return lambda labels, numbers: labels[:, target].astype(dtype, copy=False)
    if len(output.classes) != count:
        raise ValueError(f"{len(output.classes)} classes instead of {count}")
    if output.dtype == "int64" and output.classes == tuple(range(count)):
        return lambda labels, numbers: labels[:, target]
    classes = np.array(output.classes, dtype=dtype)
    return lambda labels, numbers: classes.take(labels[:, target])


def _numbers_builder(output: Output, columns: slice) -> OutputBuilder:
    dtype = NUMPY_DTYPES[output.dtype]
    if len(output.shape) == 1:
        return lambda labels, numbers: numbers[:, 0].astype(dtype, copy=False)
    return lambda labels, numbers: numbers[:, columns].astype(dtype, copy=False)
