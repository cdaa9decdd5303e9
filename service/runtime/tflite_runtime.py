"""Runtime of a .tflite file. Imports numpy and LiteRT only."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from registry.errors import Invalid, Unavailable, first_line
from registry.rows import NUMPY_DTYPES, Array, Outputs, Rows
from registry.signature import Output, Signature

BLOCK_ROWS = 256
"""Longer batches run in blocks of this size: this bounds the interpreter's memory and is not slower."""
MEMORY_PER_BYTE = 3
"""Estimated memory per byte of the file: the file and XNNPACK's repacked weights."""

SIGMOIDS = "sigmoids"
"""The output of a file with several independent labels: the probability of each, [rows, labels]."""

FAILED_NODE = re.compile(r"(?<=\S)(Node number \d+ )")
"""LiteRT appends this to an operator's own message, without a space."""

TensorDetail = dict[str, Any]
OutputConverter = Callable[[Outputs], Array]


class TfliteRuntime:
    """Thread-safe: one interpreter, one call at a time. `bytes` estimates its memory.

    The file has one input that holds as many numbers per row as there are features (in any shape after the
    first dimension), or one input per feature with the feature's name. Its outputs have the names of the
    signature's, with three exceptions: `value` may stand for `values`; a classifier's `label`, an index into
    its classes, may be missing if there are `probabilities`; and `sigmoids` may stand for the labels and
    probabilities of all `y0`, `y1`, ... Quantized tensors are converted by their scale.
    """

    def __init__(self, path: Path, signature: Signature) -> None:
        """Raises `Unavailable` when the file cannot be loaded or does not match the signature."""
        self.bytes = path.stat().st_size * MEMORY_PER_BYTE
        self._path, self._signature = path, signature
        self._lock = threading.Lock()
        self._load()
        available = {*self._outputs, *_label_names(self._outputs)}
        self._converters = {o.name: _output_converter(o, available) for o in signature.outputs}

    def _load(self) -> None:
        signature = self._signature
        try:
            self._interpreter = Interpreter(model_path=str(self._path), num_threads=1)
            self._inputs = _graph_inputs(self._interpreter, signature)
            self._outputs = _graph_outputs(self._interpreter)
            # In a file with a fixed number of rows, operators may rely on that number.
            self._block_rows = (
                BLOCK_ROWS if all(d["shape_signature"][0] == -1 for _, d, _ in self._inputs) else 1
            )
            self._allocate(1)
        except (RuntimeError, ValueError) as error:
            raise Unavailable(f"the .tflite file cannot be loaded: {first_line(error)}") from error

    def close(self) -> None:
        """Do nothing: the interpreter is freed with its last user."""

    def run(self, rows: Rows) -> Outputs:
        """Raises `Invalid` when the graph rejects these rows."""
        matrix = _matrix(rows)
        if not len(matrix):
            return {name: array[:0] for name, array in self.run(Rows(np.zeros((1, matrix.shape[1])))).items()}
        with self._lock:
            try:
                starts = range(0, len(matrix), self._block_rows)
                blocks = [self._run_block(matrix[i : i + self._block_rows]) for i in starts]
            except (RuntimeError, ValueError) as error:
                self._load()  # the interpreter would repeat this error's text in all later ones
                raise Invalid(f"the model refuses these rows: {_reason(error)}") from error
        raw = (
            blocks[0] if len(blocks) == 1 else {n: np.concatenate([b[n] for b in blocks]) for n in blocks[0]}
        )
        if SIGMOIDS in raw:
            raw = _of_labels(raw[SIGMOIDS])
        try:
            return {name: convert(raw) for name, convert in self._converters.items()}
        except IndexError as error:
            raise Invalid("the model answers with a label that is none of its classes") from error

    def _allocate(self, rows: int) -> None:
        for _, detail, shape in self._inputs:
            self._interpreter.resize_tensor_input(detail["index"], [rows, *shape])
        self._interpreter.allocate_tensors()
        self._allocated_rows = rows

    def _run_block(self, matrix: Array) -> Outputs:
        if len(matrix) != self._allocated_rows:
            self._allocated_rows = 0  # remains 0 if the allocation fails
            self._allocate(len(matrix))
        for columns, detail, shape in self._inputs:
            value = np.ascontiguousarray(matrix[:, columns]).reshape(-1, *shape)
            self._interpreter.set_tensor(detail["index"], _quantize(value, detail))
        self._interpreter.reset_all_variables()  # a recurrent operator keeps its state from call to call
        self._interpreter.invoke()
        return {n: _dequantize(self._interpreter.get_tensor(d["index"]), d) for n, d in self._outputs.items()}


def _reason(error: Exception) -> str:
    """Return the operator's message: `gather index out of bounds; Node number 4 (GATHER) failed ...`."""
    return FAILED_NODE.sub(r"; \1", first_line(error))


def _matrix(rows: Rows) -> Array:
    """float64 [n, features]."""
    if rows.matrix is not None:
        return rows.matrix
    assert rows.columns is not None
    if any(c.dtype == object for c in rows.columns):
        raise Invalid("a .tflite model takes no text")
    return np.column_stack([c.astype(np.float64) for c in rows.columns])


def _graph_inputs(interpreter: Any, signature: Signature) -> list[tuple[Any, TensorDetail, list[int]]]:
    """Return for each graph input the columns of its values, its details, and its shape without the rows."""
    details = interpreter.get_input_details()
    shapes = [[int(n) for n in d["shape"]][1:] for d in details]
    width = len(signature.inputs)
    if len(details) == 1:
        if math.prod(shapes[0]) != width:
            raise ValueError(
                f"its input holds {math.prod(shapes[0])} numbers, the signature has {width} features"
            )
        return [(slice(None), details[0], shapes[0])]
    index = {feature.name: i for i, feature in enumerate(signature.inputs)}
    tensor_names = _signature_names(interpreter, "inputs")
    names = [tensor_names.get(d["index"], d["name"]) for d in details]
    if sorted(names) != sorted(index):
        raise ValueError(f"its inputs are {', '.join(sorted(names))}, not the signature's features")
    return [(slice(index[n], index[n] + 1), d, s) for n, d, s in zip(names, details, shapes, strict=True)]


def _graph_outputs(interpreter: Any) -> dict[str, TensorDetail]:
    tensor_names = _signature_names(interpreter, "outputs")
    return {tensor_names.get(d["index"], d["name"]): d for d in interpreter.get_output_details()}


def _signature_names(interpreter: Any, side: str) -> dict[int, str]:
    """The tensor names of the file's own signature, by tensor index; converters rename the tensors."""
    keys = list(interpreter.get_signature_list())
    if not keys:
        return {}
    runner = interpreter.get_signature_runner(keys[0])
    details = runner.get_input_details() if side == "inputs" else runner.get_output_details()
    return {detail["index"]: name for name, detail in details.items()}


def _quantize(value: Array, detail: TensorDetail) -> Array:
    scale, zero = detail["quantization"]
    dtype = detail["dtype"]
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32: infinity, as in scikit-learn's trees
        if not scale or not np.issubdtype(dtype, np.integer):
            return np.asarray(value.astype(dtype))
        limits = np.iinfo(dtype)
        steps = np.rint(np.nan_to_num(value) / scale) + zero
        return np.asarray(np.clip(steps, limits.min, limits.max).astype(dtype))


def _dequantize(array: Array, detail: TensorDetail) -> Array:
    scale, zero = detail["quantization"]
    if not scale or array.dtype.kind not in "iu":
        return array
    return np.asarray((array.astype(np.float64) - zero) * scale)


def _label_names(outputs: dict[str, TensorDetail]) -> list[str]:
    """The names of the probabilities that `_of_labels` returns."""
    if SIGMOIDS not in outputs:
        return []
    return [f"y{i}.probabilities" for i in range(math.prod(int(n) for n in outputs[SIGMOIDS]["shape"][1:]))]


def _of_labels(sigmoids: Array) -> Outputs:
    """The probabilities of the two classes of each label."""
    columns = sigmoids.reshape(len(sigmoids), -1).T
    return {f"y{i}.probabilities": np.column_stack([1.0 - p, p]) for i, p in enumerate(columns)}


def _output_converter(output: Output, graph_outputs: set[str]) -> OutputConverter:
    """Return the conversion of the graph's outputs to one of the signature's.

    Raises `Unavailable` when the graph does not have it.
    """
    source = "value" if output.name == "values" and "values" not in graph_outputs else output.name
    prefix, _, rest = output.name.rpartition("label")
    from_probabilities = (
        output.name not in graph_outputs and not rest and f"{prefix}probabilities" in graph_outputs
    )
    if source not in graph_outputs and not from_probabilities:
        raise Unavailable(f"the .tflite file has no output {output.name!r}")
    dtype = NUMPY_DTYPES[output.dtype]
    is_label = not rest and output.name.endswith("label") and output.classes is not None
    classes = np.array(output.classes, dtype=dtype) if is_label else None

    def convert(outputs: Outputs) -> Array:
        array = outputs[f"{prefix}probabilities"].argmax(axis=1) if from_probabilities else outputs[source]
        if classes is not None:
            index = array.reshape(-1).astype(np.int64)
            if (index < 0).any():  # numpy would count from the last class
                raise IndexError("a label below 0")
            return classes[index]
        return array.reshape(output.shape).astype(dtype, copy=False)

    return convert
