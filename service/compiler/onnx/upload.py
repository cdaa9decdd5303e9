"""A published .onnx file: checked, described, and its inputs and outputs renamed to those of a signature.

The graph's first output is the answer: a label (with probabilities [n, k] as the second output, or a ZipMap
of them, which is removed), or numbers. `scores` next to a label are an outlier detector's [n, 1] or a
clustering's. An input of more dimensions is flattened: its features are its numbers in C order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from registry.errors import Refused, Unavailable
from registry.rows import Outputs, Rows
from registry.signature import DType, Input, Output, Scalar, Signature, Task
from service.compiler.example import ExampleTable
from service.compiler.measure import comparison_rows, parity, row_independence
from service.compiler.onnx import gate, graph
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.inputs import describe_input, example_rows
from service.compiler.signature.integer_limits import INTEGER_LIMITS, limit_integers
from service.runtime.codec.columns import show

DTYPES: dict[int, DType] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float32",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int64",
    TensorProto.INT16: "int64",
    TensorProto.INT8: "int64",
    TensorProto.UINT64: "int64",
    TensorProto.UINT32: "int64",
    TensorProto.UINT16: "int64",
    TensorProto.UINT8: "int64",
    TensorProto.BOOL: "bool",
    TensorProto.STRING: "string",
}
LABEL_DTYPES = frozenset({"int64", "string", "bool"})
MAX_FEATURES = 20_000
"""Limit of the numbers per row, as of .tflite files."""
TOLERANCE = 1e-4
"""Between the answers to a row alone and among others: float32 sums, in blocks of other sizes."""


class OnnxUpload:
    """A published graph, while it is checked and described."""

    def __init__(self, path: Path, sample: ExampleTable | None, corrections: Corrections) -> None:
        """Raises `Refused` when the file is not a graph that passes the gate."""
        try:
            self.model = onnx.load_model(path, load_external_data=False)
        except Exception as error:  # protobuf's DecodeError, which mypy cannot import
            raise Refused("the file is not an ONNX graph") from error
        self.warnings: list[str] = []
        self.sample = sample
        self.corrections = corrections
        classes = _remove_zipmap(self.model)
        gate.check(self.model)
        if not self.model.graph.output:
            raise Refused("the graph has no outputs, so it gives no answers")
        graph.drop_weight_inputs(self.model)
        _put_label_first(self.model)
        self.classes = classes or _class_constant(self.model)

    def prepare(
        self, out: Path, load: Callable[[Path, Signature], Any]
    ) -> tuple[Signature, Rows | None, Any]:
        """Write the graph to `out`; return its signature, the example's rows and the loaded runtime.

        `load` makes the serving runtime of a file and a signature. Raises `Refused` when the graph fails on
        the example's rows or on random ones, or does not answer row by row. A graph that was exported for
        one row, and works for one row only, runs one row at a time.
        """
        original = ModelProto.FromString(self.model.SerializeToString())
        try:
            return self._try(out, load, None)
        except Refused:
            if not _is_for_one_row(original):
                raise
        self.model = original
        self.warnings.append(
            "the graph was exported for one row, and runs one row at a time; exported with an open number of "
            "rows (dynamic axes), it is faster"
        )
        return self._try(out, load, 1)

    def _try(
        self, out: Path, load: Callable[[Path, Signature], Any], batch: int | None
    ) -> tuple[Signature, Rows | None, Any]:
        """`prepare` a graph that takes `batch` rows at a time; None: any number."""
        inputs, columns = self._inputs(batch)
        rows = example_rows(inputs, self.sample) if self.sample is not None else None
        task = self.corrections.task or _task(self.model)
        declared = Signature(task, inputs, _declared_outputs(self.model, task))
        kinds = comparison_rows.rows_by_kind(None, declared, rows)
        plain = kinds["example"] if rows is not None else kinds["random"]
        unserved = _unserved_outputs(self.model, task)
        graph.name_values(self.model, declared, columns)
        out.write_bytes(self.model.SerializeToString())
        answered = parity.run_checked(_loaded(load, out, declared), plain, made_up=rows is None)
        declared, answered = self._name_numbers(out, declared, answered)
        outputs = self.corrections.check_outputs(self._measured_outputs(declared, answered))
        signature = Signature(task, inputs, outputs)
        runtime = _loaded(load, out, signature)
        accepted = comparison_rows.accepted_rows(runtime.run, kinds)
        row_independence.require_independent_rows(runtime.run, accepted, signature, "the graph", TOLERANCE)
        if unserved:
            names = ", ".join(map(repr, unserved))
            self.warnings.append(f"outputs of the graph that are not served as {task}: {names}")
        return signature, rows, runtime

    def _name_numbers(self, out: Path, declared: Signature, answered: Outputs) -> tuple[Signature, Outputs]:
        """A regression's output is `value` or `values`, by the number of its answers to a row."""
        (first, *_) = declared.outputs
        if declared.task != "regression":
            return declared, answered
        numbers = answered[first.name]
        name = "value" if numbers.size == len(numbers) else "values"
        if name != first.name:
            graph.rename_output(self.model.graph, first.name, name)
            out.write_bytes(self.model.SerializeToString())
        renamed = Output(name, first.dtype, (-1,) if name == "value" else (-1, -1))
        return Signature(declared.task, declared.inputs, (renamed,)), {name: numbers}

    def _inputs(self, batch: int | None) -> tuple[tuple[Input, ...], bool]:
        """The features, and whether the graph has one input per feature. Sets the inputs' number of rows."""
        values = list(self.model.graph.input)
        if not values:
            raise Refused("the graph has no inputs: it takes no rows of features")
        shapes = [i.type.tensor_type.shape.dim for i in values]
        for value, shape in zip(values, shapes, strict=True):
            _dtype(value)
            if not len(shape):
                raise Refused(
                    f"the input {value.name!r} takes {len(shape)}-dimensional tensors; its first dimension "
                    "must be the rows"
                )
            shape[0].Clear()
            if batch is None:
                shape[0].dim_param = "N"
            else:
                shape[0].dim_value = batch
        if len(values) == 1 and len(shapes[0]) > 2:
            graph.flatten_input(self.model.graph, _row_shape(values[0]))
            shapes = [self.model.graph.input[0].type.tensor_type.shape.dim]
        if len(values) == 1 and len(shapes[0]) == 2:
            names = self._tensor_names(shapes[0][1].dim_value or None, values[0].name)
            return tuple(self._input(n, values[0]) for n in names), False
        if wide := [
            v.name
            for v, shape in zip(values, shapes, strict=True)
            if len(shape) > 2 or (len(shape) == 2 and shape[1].dim_value not in (0, 1))
        ]:
            raise Refused(
                f"the graph has several inputs, and one of them takes more than one column, {wide[0]!r}; "
                "export it with one input for all columns, or one for each"
            )
        names = [i.name for i in values]
        self.corrections.require_features(names)
        return tuple(self._input(n, v) for n, v in zip(names, values, strict=True)), True

    def _tensor_names(self, width: int | None, input_name: str) -> list[str]:
        if self.sample is not None:
            names = list(self.sample.columns)
        elif self.corrections.names:
            names = self.corrections.names
        elif width is None:
            raise Refused("the graph does not declare its number of features; publish it with an example")
        else:
            names = [input_name] if width == 1 else [f"x{i}" for i in range(width)]
        if len(names) > MAX_FEATURES:
            raise Refused(f"the graph takes {len(names)} numbers per row; the limit is {MAX_FEATURES}")
        if width is not None and len(names) != width:
            raise Refused(f"the graph takes {width} features, not {len(names)} ({', '.join(names[:10])})")
        self.corrections.require_features(names)
        return names

    def _input(self, name: str, value: ValueInfoProto) -> Input:
        dtype = _dtype(value)
        if self.sample is not None and name not in self.sample.columns:
            raise Refused(f"the example lacks {show(name)}, which the graph takes")
        feature = self.corrections.apply((describe_input(name, self.sample, dtype),))[0]
        if feature.dtype != dtype:
            raise Refused(f"the given dtype of {show(name)} is {feature.dtype}; the graph takes {dtype}")
        if feature.nullable and dtype not in ("float32", "float64"):
            raise Refused(f"{show(name)} has missing values, which a graph's {dtype} cannot hold")
        return limit_integers(feature, INTEGER_LIMITS.get(_element_name(value)))

    def _measured_outputs(self, declared: Signature, answered: Outputs) -> tuple[Output, ...]:
        """The outputs with their classes and with the shapes of `answered`, the answers of a first run."""
        corrected = {o.name: o.classes for o in self.corrections.outputs}
        outputs = []
        for output in declared.outputs:
            shape = (-1, *answered[output.name].shape[1:])
            if output.name == "value":
                shape = (-1,)
            elif output.name in ("values", "vector"):
                shape = (-1, math.prod(shape[1:]))  # in C order
            elif len(shape) > 2:
                raise Refused(
                    f"the graph returns {output.name} of the shape {list(shape[1:])} for a row; expected are "
                    "a label and the probabilities of its classes"
                )
            classes: tuple[Scalar, ...] | None = None
            if declared.task == "classification":
                classes = corrected.get("label") or corrected.get("probabilities") or self.classes
                if output.name == "probabilities":
                    classes = classes or self._numbered_classes(declared, shape[1])
                    if len(classes) != shape[1]:
                        raise Refused(
                            f"the graph returns {shape[1]} probabilities for {len(classes)} classes"
                        )
            elif output.name == "values":
                classes = corrected.get("values") or tuple(f"y{i}" for i in range(shape[1]))
            outputs.append(Output(output.name, output.dtype, shape, classes))
        label = outputs[0]
        if label.name == "label" and len(outputs) == 2 and label.classes is None:
            outputs[0] = Output("label", label.dtype, label.shape, outputs[1].classes)
        return tuple(outputs)

    def _numbered_classes(self, declared: Signature, count: int) -> tuple[Scalar, ...]:
        if declared.outputs[0].dtype != "int64":
            raise Refused("the graph does not name its classes; give them in the signature")
        self.warnings.append(f"the graph does not name its classes: 0 to {count - 1} are assumed")
        return tuple(range(count))


def _remove_zipmap(model: ModelProto) -> tuple[Scalar, ...] | None:
    """Replace a ZipMap output by the array of probabilities. Returns the ZipMap's classes."""
    for number, node in enumerate(model.graph.node):
        if node.op_type != "ZipMap":
            continue
        for output in model.graph.output:
            if output.name == node.output[0]:
                output.CopyFrom(helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, [None, None]))
        classes = _node_classes(node)
        del model.graph.node[number]
        return classes
    return None


def _class_constant(model: ModelProto) -> tuple[Scalar, ...] | None:
    """The classes of a classifier node, or the constant from which the label is gathered."""
    for node in model.graph.node:
        if node.op_type.endswith("Classifier") and (classes := _node_classes(node)):
            return classes
    producers = {name: node for node in model.graph.node for name in node.output}
    constants = {t.name: t for t in model.graph.initializer}
    if not model.graph.output:
        return None
    name = model.graph.output[0].name
    while name in producers and producers[name].input:  # the gate rejects graphs with cycles
        name = producers[name].input[0]
        if name in constants and len(constants[name].dims) == 1:
            values = numpy_helper.to_array(constants[name]).tolist()
            return tuple(v.decode() if isinstance(v, bytes) else v for v in values)
    return None


def _node_classes(node: NodeProto) -> tuple[Scalar, ...] | None:
    for attribute in node.attribute:
        if attribute.name.startswith("classlabels"):
            if attribute.strings:
                return tuple(s.decode() for s in attribute.strings)
            if attribute.ints:
                return tuple(attribute.ints)
    return None


def _dtype(value: ValueInfoProto) -> DType:
    element = value.type.tensor_type.elem_type
    if element not in DTYPES:
        kind = value.type.WhichOneof("value") or "no type"
        held = _element_name(value) if kind == "tensor_type" else f"a {kind.removesuffix('_type')}"
        raise Refused(
            f"{value.name!r} has an element type that neither features nor answers can have, {held}; cast it "
            "to a number, or to a tensor of them"
        )
    return DTYPES[element]


def _element_name(value: ValueInfoProto) -> str:
    """uint8, float16, ..."""
    return str(TensorProto.DataType.Name(value.type.tensor_type.elem_type)).lower()


def _row_shape(value: ValueInfoProto) -> tuple[int, ...]:
    """The dimensions after the rows. Raises `Refused` when one is open."""
    dims = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)[1:]
    if not all(dims):
        shown = ["N", *(d or "open" for d in dims)]
        raise Refused(f"the input {value.name!r} has the open shape {shown}; export it with every dimension")
    return dims


def _is_for_one_row(model: ModelProto) -> bool:
    """The first dimension of every input is 1, as of an export from one example row."""
    shapes = [i.type.tensor_type.shape.dim for i in model.graph.input]
    return bool(shapes) and all(len(shape) and shape[0].dim_value == 1 for shape in shapes)


def _unserved_outputs(model: ModelProto, task: Task) -> list[str]:
    """The names of outputs that the task does not answer, except a clustering's distances."""
    served = {"classification": 2, "outlier": 2, "clustering": 2, "regression": 1}
    names = [o.name for o in model.graph.output]
    return names[:-1] if task == "transform" else names[served[task] :]


def _loaded(load: Callable[[Path, Signature], Any], path: Path, signature: Signature) -> Any:
    try:
        return load(path, signature)
    except Unavailable as error:
        raise Refused(str(error)) from error


def _put_label_first(model: ModelProto) -> None:
    outputs = list(model.graph.output)
    labels = [o for o in outputs if o.type.tensor_type.elem_type in DTYPES and _dtype(o) in LABEL_DTYPES]
    if len(labels) == 1 and labels[0] is not outputs[0]:
        ordered = [labels[0], *(o for o in outputs if o is not labels[0])]
        copies = [ValueInfoProto.FromString(o.SerializeToString()) for o in ordered]
        del model.graph.output[:]
        model.graph.output.extend(copies)


def _task(model: ModelProto) -> Task:
    outputs = list(model.graph.output)
    if _dtype(outputs[0]) not in LABEL_DTYPES:
        return "regression"
    if len(outputs) > 1 and outputs[1].name.startswith("scores"):
        shape = outputs[1].type.tensor_type.shape.dim
        return "outlier" if len(shape) < 2 or shape[1].dim_value == 1 else "clustering"
    return "classification"


def _require_label(values: list[ValueInfoProto], dtype: DType) -> None:
    """Raises `Refused` unless the first output is one label per row."""
    label = values[0]
    if dtype not in LABEL_DTYPES:
        raise Refused(
            f"the graph's first output {label.name!r} holds {dtype}, so it is not a label; serve it as a "
            "regression or transform, or end the graph in ArgMax"
        )
    dims = label.type.tensor_type.shape.dim
    if (len(dims) > 1 and dims[1].dim_value > 1) or any(v.type.HasField("sequence_type") for v in values):
        raise Refused(
            f"the graph's output {label.name!r} holds several labels for a row; publish a graph for each "
            "label, or the scikit-learn model itself"
        )


def _declared_outputs(model: ModelProto, task: Task) -> tuple[Output, ...]:
    """Names and dtypes by task; shapes as the graph declares them, -1 where it does not."""
    values = list(model.graph.output)
    first = _dtype(values[0])
    if task == "classification":
        _require_label(values, first)
        label = Output("label", first, (-1,))
        return (label, Output("probabilities", "float64", (-1, -1))) if len(values) > 1 else (label,)
    if task == "clustering":
        return (Output("cluster", "int64", (-1,)),)
    if task == "outlier":
        if len(values) < 2:
            raise Refused("an outlier detector returns a label and a score; the graph has one output")
        return (Output("label", "int64", (-1,)), Output("score", _dtype(values[1]), (-1,)))
    if task == "transform":
        return (Output("vector", _dtype(values[-1]), (-1, -1)),)
    return (Output("value", first, (-1, -1)),)
