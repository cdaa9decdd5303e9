"""Surgery on ONNX graphs: names, outputs, and the one place where trees round their input."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from registry.signature import Signature
from service.runtime.graph_conventions import INPUT_SUFFIX

TREES = frozenset({"TreeEnsembleClassifier", "TreeEnsembleRegressor"})
_ONNX = {
    "float64": TensorProto.DOUBLE,
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "string": TensorProto.STRING,
}


def name_values(model: ModelProto, signature: Signature, columns: bool) -> None:
    """Make the converter's inputs and outputs the signature's: named, typed, multi-output arrays taken apart.

    With `columns` there is an input per feature, in order; one called like an output gets `INPUT_SUFFIX`.
    Other values that have one of these names make room.
    """
    graph = model.graph
    targets = [o.name for o in signature.outputs]
    features = [i.name for i in signature.inputs] if columns else [graph.input[0].name]
    inputs = [name + INPUT_SUFFIX if name in targets else name for name in features]
    mapping = dict(zip((i.name for i in graph.input), inputs, strict=True))
    used = {name for node in graph.node for name in (*node.input, *node.output)} | {
        i.name for i in graph.initializer
    }
    for name in (used & {*targets, *inputs}) - mapping.keys():
        room = name + "_"
        while room in used or room in inputs:
            room += "_"
        mapping[name] = room
    _rename(graph, mapping)
    _name_outputs(graph, signature)


def _name_outputs(graph: GraphProto, signature: Signature) -> None:
    found = list(graph.output)
    if signature.task == "transform":
        found = found[-1:]  # KMeans converts to [label, distances]
    outputs = []
    for number, output in enumerate(signature.outputs):
        target, _, last = output.name.rpartition(".")
        source = found[min(number, len(found) - 1)].name
        if target:
            source = _take(graph, found[0] if last == "label" else found[-1], int(target[1:]), last)
        operator, attributes = (
            ("Identity", {}) if output.dtype == "string" else ("Cast", {"to": _ONNX[output.dtype]})
        )
        graph.node.append(
            helper.make_node(operator, [source], [output.name], name=f"as.{output.name}", **attributes)
        )
        outputs.append(
            helper.make_tensor_value_info(output.name, _ONNX[output.dtype], [None] * len(output.shape))
        )
    del graph.output[:]
    graph.output.extend(outputs)


def _rename(graph: GraphProto, mapping: dict[str, str]) -> None:
    """Throughout `graph` and its subgraphs. What was declared of intermediate values is forgotten."""
    del graph.value_info[:]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = mapping.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [mapping.get(n, n) for n in node.input]
        node.output[:] = [mapping.get(n, n) for n in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, mapping)


def _take(graph: GraphProto, source: ValueInfoProto, target: int, last: str) -> str:
    """One target of label [n, t] or of probabilities: a sequence of [n, k], or [t, n, k]."""
    index, taken = f"index.{target}.{last}", f"taken.{target}.{last}"
    graph.initializer.append(numpy_helper.from_array(np.array(target, dtype=np.int64), index))
    if source.type.HasField("sequence_type"):
        node = helper.make_node("SequenceAt", [source.name, index], [taken], name=f"take.{target}.{last}")
    else:
        axis = 1 if last == "label" else 0
        node = helper.make_node(
            "Gather", [source.name, index], [taken], name=f"take.{target}.{last}", axis=axis
        )
    graph.node.append(node)
    return taken


def round_tree_inputs(graph: GraphProto) -> None:
    """Let the converter's trees see float32 values in a double graph, as scikit-learn's own trees do.

    scikit-learn rounds a tree's input to float32 and compares it with a float64 threshold. A double graph
    without this sends rows within one float32 step of a threshold to the wrong side. Trees whose input is
    already cast (our own) are left alone.
    """
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    nodes: list[NodeProto] = []
    rounded: dict[tuple[str, bool], str] = {}
    for node in graph.node:
        source = node.input[0] if node.input else ""
        if node.op_type in TREES and made_by.get(source) != "Cast":
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
