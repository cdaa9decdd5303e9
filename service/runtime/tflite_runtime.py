"""A .tflite file in memory, answering rows. Imports numpy and LiteRT only."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from registry.errors import Invalid, Unavailable
from registry.rows import NUMPY_DTYPES, Array, Outputs, Rows
from registry.signature import Output, Signature

BLOCK = 256
"""Longer batches go through in blocks of this: a bound on the interpreter's memory, and no slower."""
MEMORY_PER_BYTE = 3
"""The file, and the weights that XNNPACK packs anew."""

Detail = dict[str, Any]
Shaper = Callable[[Outputs], Array]


class TfliteRuntime:
    """Thread-safe: one interpreter, one call at a time. `bytes` estimates what it holds in memory.

    The file has one input that holds as many numbers a row as there are features (in any shape behind the
    first dimension), or one input for each feature, named as it. Its outputs are named as the signature's,
    where `value` may stand for `values`, and a classifier's `label`, an index into its classes, may be left
    out beside `probabilities`. Quantized inputs and outputs are converted by their scale.
    """

    def __init__(self, path: Path, signature: Signature) -> None:
        """Raises `Unavailable` when the file cannot be loaded or does not fit the signature."""
        self.bytes = path.stat().st_size * MEMORY_PER_BYTE
        self._lock = threading.Lock()
        try:
            self._interpreter = Interpreter(model_path=str(path), num_threads=1)
            self._inputs = _inputs(self._interpreter, signature)
            self._given = _outputs(self._interpreter)
            # Where the file says that it takes one row, operators in it may count on that.
            self._block = BLOCK if all(d["shape_signature"][0] == -1 for _, d, _ in self._inputs) else 1
            self._allocate(1)
        except (RuntimeError, ValueError) as error:
            raise Unavailable(f"the .tflite file cannot be loaded: {_first_line(error)}") from error
        self._shape = {o.name: _shaper(o, self._given) for o in signature.outputs}

    def close(self) -> None:
        """Nothing to end: the interpreter goes with its last user."""

    def run(self, rows: Rows) -> Outputs:
        """Raises `Invalid` when the graph refuses these rows."""
        matrix = _matrix(rows)
        if not len(matrix):
            return {name: array[:0] for name, array in self.run(Rows(np.zeros((1, matrix.shape[1])))).items()}
        with self._lock:
            try:
                starts = range(0, len(matrix), self._block)
                blocks = [self._answer(matrix[i : i + self._block]) for i in starts]
            except (RuntimeError, ValueError) as error:
                raise Invalid(f"the model refuses these rows: {_first_line(error)}") from error
        raw = (
            blocks[0] if len(blocks) == 1 else {n: np.concatenate([b[n] for b in blocks]) for n in blocks[0]}
        )
        try:
            return {name: shape(raw) for name, shape in self._shape.items()}
        except IndexError as error:
            raise Invalid("the model answers with a label that is none of its classes") from error

    def _allocate(self, rows: int) -> None:
        for _, detail, shape in self._inputs:
            self._interpreter.resize_tensor_input(detail["index"], [rows, *shape])
        self._interpreter.allocate_tensors()
        self._rows = rows

    def _answer(self, matrix: Array) -> Outputs:
        if len(matrix) != self._rows:
            self._rows = 0  # unless what follows succeeds
            self._allocate(len(matrix))
        for columns, detail, shape in self._inputs:
            value = np.ascontiguousarray(matrix[:, columns]).reshape(-1, *shape)
            self._interpreter.set_tensor(detail["index"], _quantized(value, detail))
        self._interpreter.invoke()
        return {n: _plain(self._interpreter.get_tensor(d["index"]), d) for n, d in self._given.items()}


def _matrix(rows: Rows) -> Array:
    """float64 [n, features]."""
    if rows.matrix is not None:
        return rows.matrix
    assert rows.columns is not None
    if any(c.dtype == object for c in rows.columns):
        raise Invalid("a .tflite model takes no text")
    return np.column_stack([c.astype(np.float64) for c in rows.columns])


def _inputs(interpreter: Any, signature: Signature) -> list[tuple[Any, Detail, list[int]]]:
    """By graph input: the columns it takes, its details, its shape behind the rows."""
    details = interpreter.get_input_details()
    shapes = [[int(n) for n in d["shape"]][1:] for d in details]
    width = len(signature.inputs)
    if len(details) == 1:
        if math.prod(shapes[0]) != width:
            raise ValueError(
                f"its input holds {math.prod(shapes[0])} numbers, the signature has {width} features"
            )
        return [(slice(None), details[0], shapes[0])]
    index = {given.name: i for i, given in enumerate(signature.inputs)}
    named = _signature_names(interpreter, "inputs")
    names = [named.get(d["index"], d["name"]) for d in details]
    if sorted(names) != sorted(index):
        raise ValueError(f"its inputs are {', '.join(sorted(names))}, not the signature's features")
    return [(slice(index[n], index[n] + 1), d, s) for n, d, s in zip(names, details, shapes, strict=True)]


def _outputs(interpreter: Any) -> dict[str, Detail]:
    named = _signature_names(interpreter, "outputs")
    return {named.get(d["index"], d["name"]): d for d in interpreter.get_output_details()}


def _signature_names(interpreter: Any, side: str) -> dict[int, str]:
    """What the file's own signature calls its tensors; converters rename the tensors themselves."""
    keys = list(interpreter.get_signature_list())
    if not keys:
        return {}
    runner = interpreter.get_signature_runner(keys[0])
    details = runner.get_input_details() if side == "inputs" else runner.get_output_details()
    return {detail["index"]: name for name, detail in details.items()}


def _quantized(value: Array, detail: Detail) -> Array:
    scale, zero = detail["quantization"]
    kind = detail["dtype"]
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # beyond float32 is infinity, as in scikit-learn's trees
        if not scale or not np.issubdtype(kind, np.integer):
            return np.asarray(value.astype(kind))
        limits = np.iinfo(kind)
        steps = np.rint(np.nan_to_num(value) / scale) + zero
        return np.asarray(np.clip(steps, limits.min, limits.max).astype(kind))


def _plain(array: Array, detail: Detail) -> Array:
    scale, zero = detail["quantization"]
    if not scale or array.dtype.kind not in "iu":
        return array
    return np.asarray((array.astype(np.float64) - zero) * scale)


def _shaper(output: Output, given: dict[str, Detail]) -> Shaper:
    """From the graph's outputs to one of the signature's. Raises `Unavailable` when it is not there."""
    source = "value" if output.name == "values" and "values" not in given else output.name
    before, _, last = output.name.rpartition("label")
    from_chances = output.name not in given and not last and f"{before}probabilities" in given
    if source not in given and not from_chances:
        raise Unavailable(f"the .tflite file has no output {output.name!r}")
    kind = NUMPY_DTYPES[output.dtype]
    is_label = not last and output.name.endswith("label") and output.classes is not None
    classes = np.array(output.classes, dtype=kind) if is_label else None

    def shaped(answered: Outputs) -> Array:
        array = answered[f"{before}probabilities"].argmax(axis=1) if from_chances else answered[source]
        if classes is not None:
            return classes[array.reshape(-1).astype(np.int64)]
        return array.reshape(output.shape).astype(kind, copy=False)

    return shaped


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
