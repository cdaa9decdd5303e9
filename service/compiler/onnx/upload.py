"""A .onnx file published as it is: checked, described, and its inputs and outputs named as a signature's.

The graph's first output is the answer: a label (with probabilities [n, k] as the second output, or a ZipMap
of them, which is taken off), or numbers. `scores` beside a label are an outlier's [n, 1] or a clustering's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from registry.errors import Refused
from registry.rows import Outputs, Rows
from registry.signature import DType, Input, Output, Scalar, Signature, Task
from service.compiler.example import Example
from service.compiler.measure import comparison_rows, parity
from service.compiler.onnx import gate, graph
from service.compiler.signature import describe
from service.compiler.signature.corrections import Corrections

DTYPES: dict[int, DType] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int64",
    TensorProto.BOOL: "bool",
    TensorProto.STRING: "string",
}
LABELS = frozenset({"int64", "string", "bool"})


class Adopted:
    """The graph while it is taken in. `load` makes the serving runtime of a file and a signature."""

    def __init__(self, path: Path, sample: Example | None, corrections: Corrections) -> None:
        """Raises `Refused` when the file is no graph that passes the gate."""
        try:
            self.model = onnx.load_model(path, load_external_data=False)
        except Exception as error:  # protobuf's DecodeError, whose stubs we don't have
            raise Refused("the file is no ONNX graph") from error
        self.warnings: list[str] = []
        self.sample = sample
        self.corrections = corrections
        classes = _strip_zipmap(self.model)
        gate.check(self.model)
        _label_first(self.model)
        self.classes = classes or _class_constant(self.model)

    def serve(self, out: Path, load: Callable[[Path, Signature], Any]) -> tuple[Signature, Rows | None, Any]:
        """Writes the graph to `out`, and returns its signature, the example's rows and the runtime.

        Raises `Refused` when the graph fails on the example's rows or on made-up ones.
        """
        inputs, columns = self._inputs()
        rows = describe.table(inputs, self.sample) if self.sample is not None else None
        task = self.corrections.task or _task(self.model)
        first = Signature(task, inputs, _outputs(self.model, task))
        probe = comparison_rows.kinds(None, first, rows)
        plain = probe["example"] if rows is not None else probe["random"]
        graph.name_values(self.model, first, columns)
        self._write(out)
        answered = parity.trial(load(out, first), plain)
        signature = Signature(task, inputs, self.corrections.check_outputs(self._typed(first, answered)))
        runtime = load(out, signature)
        for size in (1, 3):
            parity.trial(runtime, plain.take(slice(0, size)))
        return signature, rows, runtime

    def _write(self, out: Path) -> None:
        out.write_bytes(self.model.SerializeToString())

    def _inputs(self) -> tuple[tuple[Input, ...], bool]:
        """The features, and whether the graph has an input for each."""
        known = {i.name for i in self.model.graph.initializer}
        given = [i for i in self.model.graph.input if i.name not in known]
        dtypes = [_dtype(i) for i in given]
        dims = [i.type.tensor_type.shape.dim for i in given]
        for shape in dims:
            if len(shape) not in (1, 2):
                raise Refused(
                    f"the graph takes {len(shape)}-dimensional tensors; rows of features have 1 or 2"
                )
            shape[0].Clear()
            shape[0].dim_param = "N"
        if len(given) == 1 and len(dims[0]) == 2:
            names = self._tensor_names(dims[0][1].dim_value or None, given[0].name)
            return tuple(self._input(n, dtypes[0]) for n in names), False
        if any(len(shape) == 2 and shape[1].dim_value not in (0, 1) for shape in dims):
            raise Refused("the graph has several inputs, and one of them takes more than one column")
        names = [i.name for i in given]
        self.corrections.require_known(names)
        return tuple(self._input(n, d) for n, d in zip(names, dtypes, strict=True)), True

    def _tensor_names(self, width: int | None, input_name: str) -> list[str]:
        if self.sample is not None:
            names = list(self.sample.columns)
        elif self.corrections.names:
            names = self.corrections.names
        elif width is None:
            raise Refused("the graph does not tell how many features it takes; publish it with an example")
        else:
            names = [input_name] if width == 1 else [f"x{i}" for i in range(width)]
        if width is not None and len(names) != width:
            raise Refused(f"the graph takes {width} features, not {len(names)} ({', '.join(names[:10])})")
        self.corrections.require_known(names)
        return names

    def _input(self, name: str, dtype: DType) -> Input:
        if self.sample is not None and name not in self.sample.columns:
            raise Refused(f"the example lacks {name!r}, which the graph takes")
        found = self.corrections.apply((describe.describe_input(name, self.sample, dtype),))[0]
        if found.dtype != dtype:
            raise Refused(f"the given dtype of {name!r} is {found.dtype}; the graph takes {dtype}")
        if found.nullable and dtype not in ("float32", "float64"):
            raise Refused(f"{name!r} has missing values, which a graph's {dtype} cannot hold")
        return found

    def _typed(self, signature: Signature, answered: Outputs) -> tuple[Output, ...]:
        """The outputs with the shapes that a trial run gave, and the classes."""
        given = {o.name: o.classes for o in self.corrections.outputs}
        typed = []
        for output in signature.outputs:
            shape = (-1, *answered[output.name].shape[1:])
            classes: tuple[Scalar, ...] | None = None
            if signature.task == "classification":
                classes = given.get("label") or given.get("probabilities") or self.classes
                if output.name == "probabilities":
                    classes = classes or self._numbered(signature, shape[1])
                    if len(classes) != shape[1]:
                        raise Refused(f"the graph gives {shape[1]} probabilities for {len(classes)} classes")
            elif output.name == "values":
                classes = given.get("values") or tuple(f"y{i}" for i in range(shape[1]))
            typed.append(Output(output.name, output.dtype, shape, classes))
        if typed[0].name == "label" and len(typed) == 2 and typed[0].classes is None:
            typed[0] = Output("label", typed[0].dtype, typed[0].shape, typed[1].classes)
        return tuple(typed)

    def _numbered(self, signature: Signature, count: int) -> tuple[Scalar, ...]:
        if signature.outputs[0].dtype != "int64":
            raise Refused("the graph does not tell its classes; give them in the signature")
        self.warnings.append(f"the graph does not tell its classes: taken to be 0 to {count - 1}")
        return tuple(range(count))


def _strip_zipmap(model: ModelProto) -> tuple[Scalar, ...] | None:
    """Take the ZipMap off an output, so that it is an array again. Returns its classes."""
    for number, node in enumerate(model.graph.node):
        if node.op_type != "ZipMap":
            continue
        for output in model.graph.output:
            if output.name == node.output[0]:
                output.CopyFrom(helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, [None, None]))
        classes = _classes(node)
        del model.graph.node[number]
        return classes
    return None


def _class_constant(model: ModelProto) -> tuple[Scalar, ...] | None:
    """From a classifier node, or from the constant that the label is looked up in."""
    for node in model.graph.node:
        if node.op_type.endswith("Classifier") and (classes := _classes(node)):
            return classes
    made_by = {name: node for node in model.graph.node for name in node.output}
    constants = {t.name: t for t in model.graph.initializer}
    for output in model.graph.output:
        name = output.name
        while name in made_by and made_by[name].input:  # a graph has no circles: the checker saw to it
            name = made_by[name].input[0]
            if name in constants and len(constants[name].dims) == 1:
                values = numpy_helper.to_array(constants[name]).tolist()
                return tuple(v.decode() if isinstance(v, bytes) else v for v in values)
        break
    return None


def _classes(node: NodeProto) -> tuple[Scalar, ...] | None:
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
        raise Refused(f"{value.name!r} is of a type that no feature and no answer can be")
    return DTYPES[element]


def _label_first(model: ModelProto) -> None:
    outputs = list(model.graph.output)
    labels = [o for o in outputs if o.type.tensor_type.elem_type in DTYPES and _dtype(o) in LABELS]
    if len(labels) == 1 and labels[0] is not outputs[0]:
        ordered = [labels[0], *(o for o in outputs if o is not labels[0])]
        copies = [ValueInfoProto.FromString(o.SerializeToString()) for o in ordered]
        del model.graph.output[:]
        model.graph.output.extend(copies)


def _task(model: ModelProto) -> Task:
    outputs = list(model.graph.output)
    if _dtype(outputs[0]) not in LABELS:
        return "regression"
    if len(outputs) > 1 and outputs[1].name.startswith("scores"):
        dim = outputs[1].type.tensor_type.shape.dim
        return "outlier" if len(dim) < 2 or dim[1].dim_value == 1 else "clustering"
    return "classification"


def _outputs(model: ModelProto, task: Task) -> tuple[Output, ...]:
    """Names and dtypes by task; the shapes are those of the graph's declaration, -1 where it is silent."""
    found = list(model.graph.output)
    first = _dtype(found[0])
    if task == "classification":
        label = Output("label", first, (-1,))
        return (label, Output("probabilities", "float64", (-1, -1))) if len(found) > 1 else (label,)
    if task == "clustering":
        return (Output("cluster", "int64", (-1,)),)
    if task == "outlier":
        if len(found) < 2:
            raise Refused("an outlier detector answers with a label and a score; the graph has one output")
        return (Output("label", "int64", (-1,)), Output("score", _dtype(found[1]), (-1,)))
    if task == "transform":
        return (Output("vector", _dtype(found[-1]), (-1, -1)),)
    dims = found[0].type.tensor_type.shape.dim
    several = len(dims) == 2 and dims[1].dim_value > 1
    return (Output("values", first, (-1, -1)) if several else Output("value", first, (-1,)),)
