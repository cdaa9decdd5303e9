"""Runtime of a .onnx file. Imports numpy and onnxruntime only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from registry.errors import Invalid, Unavailable, first_line
from registry.rows import NUMPY_DTYPES, Array, Outputs, Rows
from registry.signature import Output, Signature
from service.runtime.float32_range import require_float32
from service.runtime.graph_conventions import FLOAT32_RANGE, INPUT_SUFFIX, MISSING_STRING

TENSOR_DTYPES: dict[str, Any] = {
    "tensor(double)": np.float64,
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint64)": np.uint64,
    "tensor(uint32)": np.uint32,
    "tensor(uint16)": np.uint16,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}
MEMORY_PER_BYTE = 10
"""A 55 MB forest takes 520 MB once loaded; other graphs take less."""

Feed = Callable[[Rows], dict[str, Array]]


class OnnxRuntime:
    """Thread-safe. `bytes` estimates its memory.

    The graph has one input `[n, features]`, or one per feature with the feature's name, `[n]` or `[n, 1]`.
    Its outputs have the names of the signature's. A graph for one row at a time (`[1, n]`) runs row by row.
    """

    def __init__(self, path: Path, signature: Signature) -> None:
        """Raises `Unavailable` when the file cannot be loaded or lacks one of the signature's outputs."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions do not share a base class
            reason = first_line(error).replace(str(path), path.name)
            raise Unavailable(f"the ONNX graph cannot be loaded: {reason}") from error
        self.bytes = path.stat().st_size * MEMORY_PER_BYTE
        self._names = [o.name for o in signature.outputs]
        if missing := sorted(set(self._names) - {o.name for o in self._session.get_outputs()}):
            raise Unavailable(f"the ONNX graph has no output {missing[0]!r}")
        self._converters = [_output_converter(o) for o in signature.outputs]
        self._feed = _graph_feed(self._session.get_inputs(), signature)
        self._inputs = signature.inputs
        self._requires_float32 = FLOAT32_RANGE in self._session.get_modelmeta().custom_metadata_map
        self._row_by_row = any(i.shape and i.shape[0] == 1 for i in self._session.get_inputs())

    def close(self) -> None:
        """Do nothing: the session is freed with its last user."""

    def run(self, rows: Rows) -> Outputs:
        """Raises `Invalid` when the graph, or the estimator that it was made of, rejects these rows."""
        if self._requires_float32:
            require_float32(rows, self._inputs)
        try:
            feed = self._feed(rows)
            arrays = (
                self._run_each(feed, len(rows)) if self._row_by_row else self._session.run(self._names, feed)
            )
        except Exception as error:
            raise Invalid(f"the model refuses these rows: {first_line(error)}") from error
        return {
            name: convert(array)
            for name, convert, array in zip(self._names, self._converters, arrays, strict=True)
        }

    def _run_each(self, feed: dict[str, Array], count: int) -> list[Array]:
        if not count:  # the shapes of the answers are those to any row
            first = {n: np.zeros((1, *a.shape[1:]), a.dtype) for n, a in feed.items()}
            return [a[:0] for a in self._session.run(self._names, first)]
        rows = [{n: a[i : i + 1] for n, a in feed.items()} for i in range(count)]
        answers = [self._session.run(self._names, row) for row in rows]
        return [np.concatenate(parts) for parts in zip(*answers, strict=True)]


def _graph_feed(inputs: list[Any], signature: Signature) -> Feed:
    """Return the function that turns rows into the graph's inputs."""
    dtypes = [TENSOR_DTYPES.get(i.type) for i in inputs]
    if None in dtypes:
        raise Unavailable(f"the ONNX graph has an input of type {inputs[dtypes.index(None)].type}")
    width = len(signature.inputs)
    if len(inputs) == 1 and len(inputs[0].shape) == 2 and (width == 1 or inputs[0].shape[1] != 1):
        return _matrix_feed(inputs[0].name, dtypes[0])
    index = {feature.name: i for i, feature in enumerate(signature.inputs)}
    plan = []
    for graph_input, dtype in zip(inputs, dtypes, strict=True):
        name = graph_input.name
        feature = name if name in index else name.removesuffix(INPUT_SUFFIX)
        if feature not in index:
            raise Unavailable(
                f"the ONNX graph has an input {name!r}, which is not a feature of the signature"
            )
        shape = (-1, 1) if len(graph_input.shape) == 2 else (-1,)
        plan.append((name, index[feature], dtype, shape))

    def feed(rows: Rows) -> dict[str, Array]:
        columns = rows.columns if rows.columns is not None else rows.matrix.T  # type: ignore[union-attr]
        return {name: _cast(columns[i], dtype).reshape(shape) for name, i, dtype, shape in plan}

    return feed


def _matrix_feed(name: str, dtype: Any) -> Feed:
    def feed(rows: Rows) -> dict[str, Array]:
        if rows.matrix is not None:
            return {name: _cast(rows.matrix, dtype)}
        assert rows.columns is not None
        return {name: np.column_stack([_cast(c, dtype) for c in rows.columns])}

    return feed


def _cast(array: Array, dtype: Any) -> Array:
    if array.dtype == dtype:
        if dtype is not np.object_:
            return array
        return np.array([MISSING_STRING if v is None else v for v in array.tolist()], dtype=object)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32: infinity
        return array.astype(dtype)


def _output_converter(output: Output) -> Callable[[Array], Array]:
    """Return the conversion of the graph's array to the signature's dtype and shape."""
    dtype, shape = NUMPY_DTYPES[output.dtype], output.shape
    has_unknown_width = shape.count(-1) > 1  # during a build

    def convert(array: Any) -> Array:
        plain = np.asarray(array)
        return (plain if has_unknown_width else plain.reshape(shape)).astype(dtype, copy=False)

    return convert
