"""Edit ONNX graphs: names of inputs and outputs, and the rounding of the trees' input to float32."""

from __future__ import annotations

import math

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from registry.signature import Signature
from service.runtime.graph_conventions import INPUT_SUFFIX

TREE_OPERATORS = frozenset({"TreeEnsembleClassifier", "TreeEnsembleRegressor"})
_ONNX_TYPES = {
    "float64": TensorProto.DOUBLE,
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "string": TensorProto.STRING,
}


def name_values(model: ModelProto, signature: Signature, columns: bool) -> None:
    """Give the graph the signature's inputs and outputs: names, types, one output per target.

    With `columns` there is one input per feature, in order. An input with the name of an output gets
    `INPUT_SUFFIX`. Other values with one of these names are renamed.
    """
    graph = model.graph
    outputs = [o.name for o in signature.outputs]
    features = [i.name for i in signature.inputs] if columns else [graph.input[0].name]
    inputs = [name + INPUT_SUFFIX if name in outputs else name for name in features]
    new_names = dict(zip((i.name for i in graph.input), inputs, strict=True))
    used = {name for node in graph.node for name in (*node.input, *node.output)} | {
        i.name for i in graph.initializer
    }
    for name in (used & {*outputs, *inputs}) - new_names.keys():
        free = name + "_"
        while free in used or free in inputs:
            free += "_"
        new_names[name] = free
    _rename(graph, new_names)
    _name_outputs(graph, signature)


def drop_weight_inputs(model: ModelProto) -> None:
    """Remove the weights from the graph's inputs: IR 3 lists them there as default values."""
    constants = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    if len(inputs) == len(model.graph.input):
        return
    copies = [ValueInfoProto.FromString(i.SerializeToString()) for i in inputs]
    del model.graph.input[:]
    model.graph.input.extend(copies)
    model.ir_version = max(model.ir_version, 4)  # the oldest in which weights need not be inputs


def flatten_input(graph: GraphProto, shape: tuple[int, ...]) -> None:
    """Give the one input [rows, *shape] the shape [rows, features], in C order."""
    (source,) = graph.input
    name, unflattened = source.name, f"{source.name}.unflattened"
    _rename(graph, {name: unflattened})
    source.name = name
    dims = source.type.tensor_type.shape.dim
    del dims[1:]
    dims.add().dim_value = math.prod(shape)
    target = f"{unflattened}.shape"
    graph.initializer.append(numpy_helper.from_array(np.array([-1, *shape], dtype=np.int64), target))
    graph.node.insert(0, helper.make_node("Reshape", [name, target], [unflattened], name=unflattened))


def _name_outputs(graph: GraphProto, signature: Signature) -> None:
    sources = list(graph.output)
    if signature.task == "transform":
        sources = sources[-1:]  # KMeans converts to [label, distances]
    outputs = []
    for number, output in enumerate(signature.outputs):
        target, _, last = output.name.rpartition(".")
        source = sources[min(number, len(sources) - 1)].name
        if target:
            source = _take_target(graph, sources[0 if last == "label" else -1], int(target[1:]), last)
        dtype = _ONNX_TYPES[output.dtype]
        operator, attributes = ("Identity", {}) if output.dtype == "string" else ("Cast", {"to": dtype})
        graph.node.append(
            helper.make_node(operator, [source], [output.name], name=f"as.{output.name}", **attributes)
        )
        outputs.append(helper.make_tensor_value_info(output.name, dtype, [None] * len(output.shape)))
    del graph.output[:]
    graph.output.extend(outputs)


def rename_output(graph: GraphProto, old: str, new: str) -> None:
    """Rename an output that `name_values` has named."""
    _rename(graph, {old: new})


def _rename(graph: GraphProto, new_names: dict[str, str]) -> None:
    """Rename values in `graph` and its subgraphs. Removes the declarations of intermediate values."""
    del graph.value_info[:]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = new_names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [new_names.get(n, n) for n in node.input]
        node.output[:] = [new_names.get(n, n) for n in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, new_names)


def _take_target(graph: GraphProto, source: ValueInfoProto, target: int, last: str) -> str:
    """One target of the labels [n, t] or of the probabilities: a sequence of [n, k], or [t, n, k]."""
    index, result = f"index.{target}.{last}", f"taken.{target}.{last}"
    graph.initializer.append(numpy_helper.from_array(np.array(target, dtype=np.int64), index))
    name = f"take.{target}.{last}"
    if source.type.HasField("sequence_type"):
        node = helper.make_node("SequenceAt", [source.name, index], [result], name=name)
    else:
        axis = 1 if last == "label" else 0
        node = helper.make_node("Gather", [source.name, index], [result], name=name, axis=axis)
    graph.node.append(node)
    return result


def round_tree_inputs(graph: GraphProto) -> None:
    """Round the input of the converter's trees to float32 in a double graph, as scikit-learn's trees do.

    scikit-learn rounds a tree's input to float32 and compares it with a float64 threshold. Without rounding,
    a double graph sends rows within one float32 step of a threshold to the wrong side. Trees whose input is
    already cast (those of `converters`) are left alone.
    """
    producers = {name: node.op_type for node in graph.node for name in node.output}
    nodes: list[NodeProto] = []
    rounded: dict[tuple[str, bool], str] = {}
    for node in graph.node:
        source = node.input[0] if node.input else ""
        if node.op_type in TREE_OPERATORS and producers.get(source) != "Cast":
            double = any(a.name == "nodes_values_as_tensor" for a in node.attribute)
            if (source, double) not in rounded:
                single, wide = f"{source}.float.{double}", f"{source}.double"
                nodes.append(helper.make_node("Cast", [source], [single], to=TensorProto.FLOAT))
                if double:
                    nodes.append(helper.make_node("Cast", [single], [wide], to=TensorProto.DOUBLE))
                rounded[source, double] = wide if double else single
            node.input[0] = rounded[source, double]
        nodes.append(node)
    copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)
