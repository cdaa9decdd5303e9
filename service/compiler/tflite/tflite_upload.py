"""A .tflite published as it is: checked, described by its own metadata or tensors, and tried.

The published bytes stay as they are, and a device gets them so. Where they do not name their outputs as a
signature does, what serves predictions is a copy of them with other names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from registry.errors import Refused, Unavailable
from registry.rows import Rows
from registry.signature import DType, Input, Output, Scalar, Signature, Task
from service.compiler.example import ExampleTable
from service.compiler.keras.describe_keras import MAX_FEATURES
from service.compiler.measure import comparison_rows, parity
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.inputs import describe_input, example_rows
from service.compiler.tflite import stamp, tflite_gate
from service.compiler.tflite.metadata import ENTRY, read_entries

_DTYPES: dict[str, DType] = {
    **{"FLOAT32": "float32", "FLOAT16": "float32", "FLOAT64": "float64"},
    **{
        "INT32": "int64",
        "INT64": "int64",
        "INT16": "int64",
        "UINT8": "int64",
        "INT8": "int64",
        "BOOL": "bool",
    },
}
_PASS_ON = frozenset({"CAST", "DEQUANTIZE", "QUANTIZE", "RESHAPE", "SQUEEZE"})


class _Known(msgspec.Struct, frozen=True):
    """The metadata entry of ours."""

    task: Task
    features: tuple[str, ...]
    outputs: tuple[_KnownOutput, ...]
    model: str = ""


class _KnownOutput(msgspec.Struct, frozen=True):
    name: str
    shape: tuple[int, ...]
    classes: tuple[Scalar, ...] | None = None


class TfliteUpload:
    """The file while it is taken in. `load` makes the serving runtime of a file and a signature."""

    def __init__(self, path: Path, sample: ExampleTable | None, corrections: Corrections) -> None:
        """Raises `Refused` when the file is no .tflite that passes the gate."""
        content = path.read_bytes()
        self.model = tflite_gate.read_checked(content)
        self.graph = self.model.subgraphs[0]
        self.path, self.sample, self.corrections = path, sample, corrections
        self.warnings: list[str] = []
        self.known = _known(content)

    def serve(
        self, out: Path, load: Callable[[Path, Signature], Any]
    ) -> tuple[Signature, Rows | None, Any, bool]:
        """The signature, the example's rows, the runtime, and whether `out` was written to serve from.

        Raises `Refused` when the file does not answer row by row, on the example's rows and made-up ones.
        """
        inputs = self._inputs()
        rows = example_rows(inputs, self.sample) if self.sample is not None else None
        signature = self._signature(inputs)
        copied = self.write(out, signature)
        runtime = _loaded(load, out if copied else self.path, signature)
        probe = comparison_rows.rows_by_kind(None, signature, rows)
        plain = probe["example"] if rows is not None else probe["random"]
        for size in (1, 3, len(plain)):
            parity.run_checked(runtime, plain.take(slice(0, size)))
        return signature, rows, runtime, copied

    def write(self, out: Path, signature: Signature) -> bool:
        """A copy with the names of a signature that `serve` gave, unless the file has its own."""
        if self.known is not None:
            return False
        tensors = self._tensors(signature.task)
        several = len(self.graph.inputs) > 1
        names = [i.name for i in signature.inputs] if several else [stamp.INPUT]
        outputs = list(signature.outputs)
        if len(tensors) < len(outputs):  # the label is where the largest of the probabilities is
            outputs = [o for o in outputs if o.name != "label"]
        out.write_bytes(stamp.rename(self.model, names, tensors, outputs, signature, "tflite"))
        return True

    def _inputs(self) -> tuple[Input, ...]:
        tensors = [self.graph.tensors[i] for i in self.graph.inputs]
        sizes, dtypes = [], []
        for tensor in tensors:
            shape = [int(n) for n in tensor.shape] if tensor.shape is not None else []
            if not shape or shape[0] != 1:
                raise Refused(
                    f"an input has the shape {shape}; its first dimension must be the rows, 1 or any"
                )
            if tflite_gate.dtype_name(tensor) not in _DTYPES:
                raise Refused(f"an input takes {tflite_gate.dtype_name(tensor)}, which no feature can be")
            sizes.append(math.prod(shape[1:]))
            dtypes.append(
                "float32" if tflite_gate.is_quantized(tensor) else _DTYPES[tflite_gate.dtype_name(tensor)]
            )
        if len(tensors) > 1 and any(size != 1 for size in sizes):
            raise Refused("the graph has several inputs, and one of them takes more than one number a row")
        if sum(sizes) > MAX_FEATURES:
            raise Refused(
                f"the graph takes {sum(sizes)} numbers a row; more than {MAX_FEATURES} are not served"
            )
        kinds: list[DType] = dtypes if len(tensors) > 1 else dtypes * sizes[0]
        names = self._names(len(kinds))
        return tuple(self._input(n, d) for n, d in zip(names, kinds, strict=True))

    def _names(self, width: int) -> list[str]:
        own = self._own_names()
        if self.known is not None:
            names = list(self.known.features)
        elif own is not None:
            names = own
        elif self.sample is not None:
            names = list(self.sample.columns)
        else:
            names = (
                self.corrections.names
                if len(self.corrections.names) == width
                else [f"x{i}" for i in range(width)]
            )
        if len(names) != width:
            raise Refused(
                f"the graph takes {width} numbers a row, not {len(names)} ({', '.join(names[:10])})"
            )
        if len(set(names)) < width:
            raise Refused("the file gives two features one name")
        self.corrections.require_features(names)
        return names

    def _own_names(self) -> list[str] | None:
        """Of several inputs: what the file's own signature calls them, else their tensors' names."""
        if len(self.graph.inputs) == 1:
            return None
        called = {}
        if self.model.signatureDefs and not self.model.signatureDefs[0].subgraphIndex:
            called = {
                e.tensorIndex: tflite_gate.decode_name(e.name)
                for e in self.model.signatureDefs[0].inputs or []
            }
        return [
            called.get(int(i), tflite_gate.decode_name(self.graph.tensors[i].name)) for i in self.graph.inputs
        ]

    def _input(self, name: str, dtype: DType) -> Input:
        if self.sample is not None and name not in self.sample.columns:
            raise Refused(f"the example lacks {name!r}, which the graph takes")
        found = self.corrections.apply((describe_input(name, self.sample, dtype),))[0]
        if found.dtype == "string":
            raise Refused(f"the given dtype of {name!r} is string; the graph takes {dtype}")
        return found

    def _signature(self, inputs: tuple[Input, ...]) -> Signature:
        if self.known is not None:
            return Signature(self.known.task, inputs, _outputs_of(self.known, self.corrections))
        task = self._task()
        tensors = self._tensors(task)
        width = self._width(tensors[-1])
        outputs: tuple[Output, ...]
        if task == "classification":
            outputs = self._classes(width, self._is_whole(tensors[0]) and len(tensors) == 1)
        elif task == "transform":
            outputs = (Output("vector", "float32", (-1, width)),)
        elif width == 1:
            outputs = (Output("value", "float32", (-1,)),)
        else:
            outputs = (Output("values", "float32", (-1, width), tuple(f"y{i}" for i in range(width))),)
        return Signature(task, inputs, self.corrections.check_outputs(outputs))

    def _tensors(self, task: Task) -> list[int]:
        """The graph's outputs in the signature's order, without a label that comes from probabilities."""
        tensors = sorted((int(i) for i in self.graph.outputs), key=lambda i: not self._is_whole(i))
        if len(tensors) > 2 or (
            len(tensors) == 2 and (task != "classification" or self._is_whole(tensors[1]))
        ):
            raise Refused(f"the graph has {len(tensors)} outputs, which do not tell what they are")
        return tensors

    def _task(self) -> Task:
        tensors = [int(i) for i in self.graph.outputs]
        chances = [i for i in tensors if self._last(i) in ("SOFTMAX", "LOGISTIC")]
        if any(self._is_whole(i) for i in tensors) or any(self._width(i) > 1 for i in chances):
            return self.corrections.pick_task("the graph", ("classification", "regression", "transform"))
        if chances:
            self.warnings.append(
                "one number behind a sigmoid: served as it is, the chance of the second class"
            )
        return self.corrections.pick_task("the graph", ("regression", "transform"))

    def _classes(self, width: int, label_alone: bool) -> tuple[Output, ...]:
        given = {o.name: o.classes for o in self.corrections.outputs}
        classes = given.get("label") or given.get("probabilities")
        if label_alone:
            return (Output("label", _dtype(classes), (-1,), classes),)
        if classes is None:
            classes = tuple(range(width))
            self.warnings.append(f"the graph does not tell its classes: taken to be 0 to {width - 1}")
        if len(classes) != width:
            raise Refused(f"{len(classes)} classes are given for the graph's {width}")
        label = Output("label", _dtype(classes), (-1,), classes)
        return (label, Output("probabilities", "float32", (-1, width), classes))

    def _last(self, tensor: int) -> str:
        """The operator that made it, behind those that only convert or reshape."""
        by_output = {int(o): step for step in self.graph.operators or [] for o in step.outputs}
        while (step := by_output.get(tensor)) is not None:
            name = tflite_gate.operator_name(self.model, step.opcodeIndex)
            if name not in _PASS_ON:
                return name
            tensor = int(step.inputs[0])
        return ""

    def _is_whole(self, tensor: int) -> bool:
        found = self.graph.tensors[tensor]
        return tflite_gate.dtype_name(found) in ("INT32", "INT64") and not tflite_gate.is_quantized(found)

    def _width(self, tensor: int) -> int:
        shape = self.graph.tensors[tensor].shape
        return math.prod(int(n) for n in shape[1:]) if shape is not None and len(shape) else 1


def _known(content: bytes) -> _Known | None:
    """What our own metadata says. Raises `Refused` when there is such an entry and it says nothing of use."""
    entry = read_entries(content).get(ENTRY)
    if entry is None:
        return None
    try:
        return msgspec.json.decode(entry, type=_Known)
    except msgspec.MsgspecError as error:
        raise Refused(f"the file's metadata {ENTRY!r} is not what it should be: {error}") from error


def _outputs_of(known: _Known, corrections: Corrections) -> tuple[Output, ...]:
    outputs = []
    for output in known.outputs:
        dtype: DType = "float32"
        name, shape = output.name, output.shape
        if name.rpartition(".")[2] in ("label", "cluster"):
            dtype, shape = _dtype(output.classes), (-1,)
        elif name == "value":
            several = len(shape) > 1 and shape[1] > 1
            name, shape = ("values", shape) if several else ("value", (-1,))
        elif name == "score":
            shape = (-1,)
        outputs.append(Output(name, dtype, shape, output.classes))
    return corrections.check_outputs(tuple(outputs))


def _dtype(classes: tuple[Scalar, ...] | None) -> DType:
    first = classes[0] if classes else 0
    if isinstance(first, bool):
        return "bool"
    return "string" if isinstance(first, str) else "float64" if isinstance(first, float) else "int64"


def _loaded(load: Callable[[Path, Signature], Any], path: Path, signature: Signature) -> Any:
    try:
        return load(path, signature)
    except Unavailable as error:
        raise Refused(str(error)) from error
