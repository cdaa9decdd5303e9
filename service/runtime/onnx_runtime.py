"""A .onnx file in memory, answering rows. Imports numpy and onnxruntime only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from registry.errors import Invalid, Unavailable
from registry.rows import NUMPY_DTYPES, Array, Outputs, Rows
from registry.signature import Output, Signature
from service.runtime.graph_conventions import INPUT_SUFFIX, MISSING_STRING

TENSORS: dict[str, Any] = {
    "tensor(double)": np.float64,
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}
MEMORY_PER_BYTE = 10
"""A 55 MB forest takes 520 MB once loaded; other graphs take less."""

Feed = Callable[[Rows], dict[str, Array]]


class OnnxRuntime:
    """Thread-safe. `bytes` estimates what it holds in memory.

    The graph has one input `[n, features]`, or one per feature named as the feature, `[n]` or `[n, 1]`.
    Its outputs are named as the signature's.
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
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            reason = _first_line(error).replace(str(path), path.name)
            raise Unavailable(f"the ONNX graph cannot be loaded: {reason}") from error
        self.bytes = path.stat().st_size * MEMORY_PER_BYTE
        self._names = [o.name for o in signature.outputs]
        if missing := sorted(set(self._names) - {o.name for o in self._session.get_outputs()}):
            raise Unavailable(f"the ONNX graph has no output {missing[0]!r}")
        self._shape = [_shaper(o) for o in signature.outputs]
        self._feed = _feeder(self._session.get_inputs(), signature)

    def close(self) -> None:
        """Nothing to end: the session goes with its last user."""

    def run(self, rows: Rows) -> Outputs:
        """Raises `Invalid` when the graph refuses these rows."""
        try:
            answered = self._session.run(self._names, self._feed(rows))
        except Exception as error:
            raise Invalid(f"the model refuses these rows: {_first_line(error)}") from error
        return {
            name: shape(array) for name, shape, array in zip(self._names, self._shape, answered, strict=True)
        }


def _feeder(inputs: list[Any], signature: Signature) -> Feed:
    """How rows become the graph's inputs, decided once."""
    kinds = [TENSORS.get(i.type) for i in inputs]
    if None in kinds:
        raise Unavailable(f"the ONNX graph has an input of type {inputs[kinds.index(None)].type}")
    width = len(signature.inputs)
    if len(inputs) == 1 and len(inputs[0].shape) == 2 and (width == 1 or inputs[0].shape[1] != 1):
        return _tensor_feeder(inputs[0].name, kinds[0])
    index = {given.name: i for i, given in enumerate(signature.inputs)}
    taken = []
    for graph_input, kind in zip(inputs, kinds, strict=True):
        feature = (
            graph_input.name.removesuffix(INPUT_SUFFIX) if graph_input.name not in index else graph_input.name
        )
        if feature not in index:
            raise Unavailable(
                f"the ONNX graph wants {graph_input.name!r}, which is no feature of the signature"
            )
        shape = (-1, 1) if len(graph_input.shape) == 2 else (-1,)
        taken.append((graph_input.name, index[feature], kind, shape))

    def columns(rows: Rows) -> dict[str, Array]:
        at = rows.columns if rows.columns is not None else rows.matrix.T  # type: ignore[union-attr]
        return {name: _as(at[i], kind).reshape(shape) for name, i, kind, shape in taken}

    return columns


def _tensor_feeder(name: str, kind: Any) -> Feed:
    def tensor(rows: Rows) -> dict[str, Array]:
        if rows.matrix is not None:
            return {name: _as(rows.matrix, kind)}
        assert rows.columns is not None
        return {name: np.column_stack([_as(c, kind) for c in rows.columns])}

    return tensor


def _as(array: Array, kind: Any) -> Array:
    if array.dtype == kind:
        if kind is not np.object_:
            return array
        return np.array([MISSING_STRING if v is None else v for v in array.tolist()], dtype=object)
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # beyond float32 is infinity, as in scikit-learn's trees
        return array.astype(kind)


def _shaper(output: Output) -> Callable[[Array], Array]:
    """From the graph's array to the signature's dtype and shape."""
    kind = NUMPY_DTYPES[output.dtype]
    shape = output.shape

    open_ended = shape.count(-1) > 1  # a build does not know the width yet

    def shaped(array: Any) -> Array:
        plain = np.asarray(array)
        return (plain if open_ended else plain.reshape(shape)).astype(kind, copy=False)

    return shaped


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
