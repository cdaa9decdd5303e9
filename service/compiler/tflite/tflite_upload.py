"""Accept a published .tflite: check it, describe it by its metadata or its tensors, and run it.

The published bytes stay unchanged, also for devices. If the names of their outputs are not those of a
signature, predictions are served from a copy with other names.
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
from service.compiler.measure import comparison_rows, parity, row_independence
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.inputs import describe_input, example_rows
from service.compiler.signature.integer_limits import INTEGER_LIMITS, limit_integers
from service.compiler.tflite import stamp, tflite_gate
from service.compiler.tflite.metadata import ENTRY, MAX_FEATURES, read_entries
from service.runtime.codec.columns import show
from service.runtime.tflite_runtime import SIGMOIDS

_DTYPES: dict[str, DType] = {
    "FLOAT32": "float32",
    "FLOAT16": "float32",
    "FLOAT64": "float64",
    "INT32": "int64",
    "INT64": "int64",
    "INT16": "int64",
    "UINT8": "int64",
    "INT8": "int64",
    "BOOL": "bool",
}
TOLERANCE = 1e-4
"""Between the answers to a row alone and among others: the same float32 operators, in other blocks."""
_TRANSPARENT_OPERATORS = frozenset({"CAST", "DEQUANTIZE", "QUANTIZE", "RESHAPE", "SQUEEZE"})


class _Metadata(msgspec.Struct, frozen=True):
    """The metadata entry `trivium`, which files written by Trivium have."""

    task: Task
    features: tuple[str, ...]
    outputs: tuple[_MetadataOutput, ...]
    model: str = ""
    bounds: dict[str, tuple[float, float]] = {}  # of features that are whole numbers


class _MetadataOutput(msgspec.Struct, frozen=True):
    name: str
    shape: tuple[int, ...]
    classes: tuple[Scalar, ...] | None = None


class TfliteUpload:
    """A .tflite file during its build."""

    def __init__(self, path: Path, sample: ExampleTable | None, corrections: Corrections) -> None:
        """Raises `Refused` when the file does not pass the gate."""
        content = path.read_bytes()
        self.model = tflite_gate.read_checked(content)
        self.graph = self.model.subgraphs[0]
        self.path, self.sample, self.corrections = path, sample, corrections
        self.warnings: list[str] = []
        self.metadata = _read_own_metadata(content)

    def serve(
        self, out: Path, load: Callable[[Path, Signature], Any]
    ) -> tuple[Signature, Rows | None, Any, bool]:
        """(signature, rows of the example, runtime, whether predictions are served from `out`).

        `load` creates the runtime of a file and a signature. Raises `Refused` when the file does not answer
        the rows of the example, or random rows, row by row.
        """
        inputs = self._inputs()
        rows = example_rows(inputs, self.sample) if self.sample is not None else None
        signature = self._signature(inputs)
        copied = self.write(out, signature)
        runtime = _loaded(load, out if copied else self.path, signature)
        kinds = comparison_rows.rows_by_kind(None, signature, rows)
        plain = kinds["random"] if rows is None else kinds["example"]
        parity.run_checked(runtime, plain, made_up=rows is None)
        row_independence.require_independent_rows(
            runtime.run, comparison_rows.accepted_rows(runtime.run, kinds), signature, "the graph", TOLERANCE
        )
        return signature, rows, runtime, copied

    def write(self, out: Path, signature: Signature) -> bool:
        """Write a copy with the names of `signature`, unless the file has the metadata of Trivium."""
        if self.metadata is not None:
            return False
        tensors = self._tensors(signature.task)
        has_several_inputs = len(self.graph.inputs) > 1
        names = [i.name for i in signature.inputs] if has_several_inputs else [stamp.INPUT]
        outputs = list(signature.outputs)
        if labels := _labels(signature):
            outputs = [_sigmoids(labels)]
        elif len(tensors) < len(outputs):  # the runtime computes the label from the probabilities
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
                    f"an input has the shape {shape}; its first dimension must be the rows: 1 or open"
                )
            if tflite_gate.dtype_name(tensor) not in _DTYPES:
                raise Refused(
                    f"an input has the dtype {tflite_gate.dtype_name(tensor)}, which features cannot have"
                )
            sizes.append(math.prod(shape[1:]))
            dtypes.append(
                "float32" if tflite_gate.is_quantized(tensor) else _DTYPES[tflite_gate.dtype_name(tensor)]
            )
        if len(tensors) > 1 and any(size != 1 for size in sizes):
            raise Refused("the graph has several inputs, and one of them has more than one number per row")
        if sum(sizes) > MAX_FEATURES:
            raise Refused(f"the graph has {sum(sizes)} numbers per row; the limit is {MAX_FEATURES}")
        feature_dtypes: list[DType] = dtypes if len(tensors) > 1 else dtypes * sizes[0]
        names = self._feature_names(len(feature_dtypes))
        tensor_of = tensors if len(tensors) > 1 else tensors * sizes[0]
        return tuple(self._input(n, d, t) for n, d, t in zip(names, feature_dtypes, tensor_of, strict=True))

    def _feature_names(self, width: int) -> list[str]:
        input_names = self._input_names()
        if self.metadata is not None:
            names = list(self.metadata.features)
        elif input_names is not None:
            names = input_names
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
                f"the graph has {width} numbers per row, the names are {len(names)} ({', '.join(names[:10])})"
            )
        if len(set(names)) < width:
            raise Refused("two features of the file have the same name")
        self.corrections.require_features(names)
        return names

    def _input_names(self) -> list[str] | None:
        """Names of several inputs: from the file's own signature, else from the tensors."""
        if len(self.graph.inputs) == 1:
            return None
        names = {}
        if self.model.signatureDefs and not self.model.signatureDefs[0].subgraphIndex:
            names = {
                e.tensorIndex: tflite_gate.decode_name(e.name)
                for e in self.model.signatureDefs[0].inputs or []
            }
        return [
            names.get(int(i), tflite_gate.decode_name(self.graph.tensors[i].name)) for i in self.graph.inputs
        ]

    def _input(self, name: str, dtype: DType, tensor: Any) -> Input:
        if self.sample is not None and name not in self.sample.columns:
            raise Refused(f"the example lacks the column {show(name)}, an input of the graph")
        bounds = None if self.metadata is None else self.metadata.bounds.get(name)
        if bounds is not None:
            dtype = "int64"
        feature = self.corrections.apply((describe_input(name, self.sample, dtype),))[0]
        if feature.dtype == "string":
            raise Refused(f"the given dtype of {show(name)} is string; the graph needs {dtype}")
        kind = tflite_gate.dtype_name(tensor)
        if dtype in ("int64", "bool") and feature.dtype in ("float32", "float64"):
            raise Refused(
                f"the given dtype of {show(name)} is {feature.dtype}; the graph's input holds whole numbers, "
                f"{kind}"
            )
        if feature.nullable and (dtype in ("int64", "bool") or tflite_gate.is_quantized(tensor)):
            raise Refused(
                f"{show(name)} has missing values, which the graph's {kind} input cannot hold; publish an "
                "example without them"
            )
        if tflite_gate.is_quantized(tensor):
            return feature
        limits = INTEGER_LIMITS.get(kind.lower()) if bounds is None else (int(bounds[0]), int(bounds[1]))
        return limit_integers(feature, limits)

    def _signature(self, inputs: tuple[Input, ...]) -> Signature:
        if self.metadata is not None:
            return Signature(self.metadata.task, inputs, _metadata_outputs(self.metadata, self.corrections))
        task = self._task()
        tensors = self._tensors(task)
        width = self._width(tensors[-1])
        outputs: tuple[Output, ...]
        if task == "classification":
            outputs = self._class_outputs(tensors, width)
        elif task == "transform":
            outputs = (Output("vector", "float32", (-1, width)),)
        elif width == 1:
            outputs = (Output("value", "float32", (-1,)),)
        else:
            outputs = (Output("values", "float32", (-1, width), tuple(f"y{i}" for i in range(width))),)
        return Signature(task, inputs, self.corrections.check_outputs(outputs))

    def _tensors(self, task: Task) -> list[int]:
        """The graph's outputs in the signature's order, possibly without the label beside probabilities."""
        tensors = sorted((int(i) for i in self.graph.outputs), key=lambda i: not self._is_integer(i))
        is_integer = [self._is_integer(i) for i in tensors]
        if len(tensors) > 2 or (
            len(tensors) == 2 and (task != "classification" or is_integer != [True, False])
        ):
            raise Refused(
                f"the graph has {len(tensors)} outputs of unknown meaning; supported are one output, or a "
                "label and probabilities"
            )
        return tensors

    def _task(self) -> Task:
        tensors = [int(i) for i in self.graph.outputs]
        probabilities = [i for i in tensors if self._last_operator(i) in ("SOFTMAX", "LOGISTIC")]
        if any(self._is_integer(i) for i in tensors) or any(self._width(i) > 1 for i in probabilities):
            return self.corrections.pick_task("the graph", ("classification", "regression", "transform"))
        if probabilities:
            self.warnings.append(
                "one number after a sigmoid: served unchanged, as the probability of the second class"
            )
        return self.corrections.pick_task("the graph", ("regression", "transform"))

    def _class_outputs(self, tensors: list[int], width: int) -> tuple[Output, ...]:
        label_only = len(tensors) == 1 and self._is_integer(tensors[0])
        if len(tensors) == 1 and width > 1 and self._last_operator(tensors[0]) == "LOGISTIC":
            named = [o.name for o in self.corrections.outputs]
            if "label" not in named and "probabilities" not in named:
                return self._label_outputs(width)
        corrected = {o.name: o.classes for o in self.corrections.outputs}
        classes = corrected.get("label") or corrected.get("probabilities")
        if label_only:
            return (Output("label", _label_dtype(classes), (-1,), classes),)
        if classes is None:
            classes = tuple(range(width))
            self.warnings.append(f"the graph does not name its classes: they are numbered 0 to {width - 1}")
        if len(classes) != width:
            raise Refused(f"{len(classes)} classes are given for the graph's {width}")
        label = Output("label", _label_dtype(classes), (-1,), classes)
        return (label, Output("probabilities", "float32", (-1, width), classes))

    def _label_outputs(self, count: int) -> tuple[Output, ...]:
        """Two classes for each of several sigmoids."""
        self.warnings.append(
            f"the graph ends in {count} sigmoids: each is a label of its own, 1 above 0.5; if they are "
            "the classes of one label, give a signature with the output label and its classes"
        )
        corrected = {o.name: o.classes for o in self.corrections.outputs}
        outputs: list[Output] = []
        for prefix in (f"y{i}." for i in range(count)):
            classes = corrected.get(f"{prefix}label") or corrected.get(f"{prefix}probabilities") or (0, 1)
            if len(set(classes)) != 2:
                raise Refused(f"{len(classes)} classes are given for {prefix}label, a sigmoid: it has two")
            outputs += [
                Output(f"{prefix}label", _label_dtype(classes), (-1,), classes),
                Output(f"{prefix}probabilities", "float32", (-1, 2), classes),
            ]
        return tuple(outputs)

    def _last_operator(self, tensor: int) -> str:
        """The operator that computed the tensor, before those that only convert or reshape it."""
        by_output = {int(o): step for step in self.graph.operators or [] for o in step.outputs}
        while (step := by_output.get(tensor)) is not None:
            name = tflite_gate.operator_name(self.model, step.opcodeIndex)
            if name not in _TRANSPARENT_OPERATORS:
                return name
            tensor = int(step.inputs[0])
        return ""

    def _is_integer(self, tensor: int) -> bool:
        output = self.graph.tensors[tensor]
        return tflite_gate.dtype_name(output) in ("INT32", "INT64") and not tflite_gate.is_quantized(output)

    def _width(self, tensor: int) -> int:
        shape = self.graph.tensors[tensor].shape
        return math.prod(int(n) for n in shape[1:]) if shape is not None and len(shape) else 1


def _read_own_metadata(content: bytes) -> _Metadata | None:
    """The metadata entry `trivium`, or None. Raises `Refused` when it is damaged."""
    entry = read_entries(content).get(ENTRY)
    if entry is None:
        return None
    try:
        return msgspec.json.decode(entry, type=_Metadata)
    except msgspec.MsgspecError as error:
        raise Refused(f"the file's metadata entry {ENTRY!r} is not valid: {error}") from error


def _labels(signature: Signature) -> list[Output]:
    """The labels y0.label, y1.label, ... of a signature with several."""
    return [o for o in signature.outputs if o.name.endswith(".label")]


def _sigmoids(labels: list[Output]) -> Output:
    """The one output of the file that answers `labels`; its classes are those of each label in turn."""
    classes = tuple(c for o in labels for c in o.classes or ())
    return Output(SIGMOIDS, "float32", (-1, len(labels)), classes)


def _metadata_labels(sigmoids: _MetadataOutput) -> list[Output]:
    outputs: list[Output] = []
    classes = sigmoids.classes or ()
    for number in range(len(classes) // 2):
        pair = classes[2 * number : 2 * number + 2]
        outputs += [
            Output(f"y{number}.label", _label_dtype(pair), (-1,), pair),
            Output(f"y{number}.probabilities", "float32", (-1, 2), pair),
        ]
    return outputs


def _metadata_outputs(metadata: _Metadata, corrections: Corrections) -> tuple[Output, ...]:
    outputs: list[Output] = []
    for output in metadata.outputs:
        if output.name == SIGMOIDS:
            outputs += _metadata_labels(output)
            continue
        dtype: DType = "float32"
        name, shape = output.name, output.shape
        if name.rpartition(".")[2] in ("label", "cluster"):
            dtype, shape = _label_dtype(output.classes), (-1,)
        elif name == "value":
            has_targets = len(shape) > 1 and shape[1] > 1
            name, shape = ("values", shape) if has_targets else ("value", (-1,))
        elif name == "score":
            shape = (-1,)
        outputs.append(Output(name, dtype, shape, output.classes))
    return corrections.check_outputs(tuple(outputs))


def _label_dtype(classes: tuple[Scalar, ...] | None) -> DType:
    first = classes[0] if classes else 0
    if isinstance(first, bool):
        return "bool"
    return "string" if isinstance(first, str) else "float64" if isinstance(first, float) else "int64"


def _loaded(load: Callable[[Path, Signature], Any], path: Path, signature: Signature) -> Any:
    try:
        return load(path, signature)
    except Unavailable as error:
        raise Refused(str(error)) from error
