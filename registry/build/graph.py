"""Surgery on ONNX graphs: names, outputs, and the one place where trees round their input."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, helper, numpy_helper

from registry.signature import Signature

INPUT_SUFFIX = ".in"
"""Ends a graph input whose feature is called like an output; `service/runtime/onnx.py` takes it off again."""
TREES = frozenset({"TreeEnsembleClassifier", "TreeEnsembleRegressor"})


def rename(graph: GraphProto, mapping: dict[str, str]) -> None:
    """Rename values throughout `graph` and its subgraphs, all at once. Intermediate shapes are forgotten.

    A value that already has one of the new names makes room: an input gets `INPUT_SUFFIX`, others "_".
    """
    inputs = {i.name for i in graph.input}
    full = dict(mapping)
    for taken in set(mapping.values()) - set(mapping):
        full[taken] = taken + (INPUT_SUFFIX if taken in inputs else "_")
    _rename(graph, full)


def _rename(graph: GraphProto, mapping: dict[str, str]) -> None:
    del graph.value_info[:]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = mapping.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [mapping.get(n, n) for n in node.input]
        node.output[:] = [mapping.get(n, n) for n in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, mapping)


def name_outputs(model: ModelProto, signature: Signature) -> None:
    """Make the converter's outputs the signature's: renamed, multi-output arrays taken apart, others dropped."""
    graph = model.graph
    found = [ValueInfoProto.FromString(o.SerializeToString()) for o in graph.output]
    if signature.task == "transform":
        found = found[-1:]  # KMeans converts to [label, distances]
    if any(o.name.startswith("y0.") for o in signature.outputs):
        _take_apart(graph, found, signature)
        return
    kept = list(zip(found, signature.outputs, strict=False))
    rename(graph, {value.name: output.name for value, output in kept})
    del graph.output[:]
    for value, output in kept:
        value.name = output.name
        graph.output.append(value)


def _take_apart(graph: GraphProto, found: list[ValueInfoProto], signature: Signature) -> None:
    """label [n, t] and probabilities (a sequence, or [t, n, k]) into one array per target."""
    outputs = []
    for i, output in enumerate(signature.outputs):
        target, _, last = output.name.rpartition(".")
        source = found[0] if last == "label" else found[1]
        index = f"at.{output.name}"
        graph.initializer.append(numpy_helper.from_array(np.array(int(target[1:]), dtype=np.int64), index))
        operator, axis = ("Gather", {"axis": 1 if last == "label" else 0})
        if source.type.HasField("sequence_type"):
            operator, axis = ("SequenceAt", {})
        graph.node.append(helper.make_node(operator, [source.name, index], [output.name], name=f"take.{i}", **axis))
        outputs.append(_value(output.name, _element(source.type), len(output.shape)))
    del graph.output[:]
    graph.output.extend(outputs)


def _element(kind: TypeProto) -> int:
    if kind.HasField("sequence_type"):
        kind = kind.sequence_type.elem_type
    return int(kind.tensor_type.elem_type)


def _value(name: str, element: int, rank: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, element, [None] * rank)


def round_tree_inputs(graph: GraphProto) -> None:
    """Let trees with double thresholds see float32 values, as scikit-learn's own trees do.

    scikit-learn rounds a tree's input to float32 and compares it with a float64 threshold. A double graph
    without this sends rows within one float32 step of a threshold to the wrong side.
    """
    nodes: list[NodeProto] = []
    rounded: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in TREES and _has_double_thresholds(node):
            source = node.input[0]
            if source not in rounded:
                rounded[source] = f"{source}.rounded"
                nodes.append(helper.make_node("Cast", [source], [f"{source}.float"], to=TensorProto.FLOAT))
                nodes.append(helper.make_node("Cast", [f"{source}.float"], [rounded[source]], to=TensorProto.DOUBLE))
            node.input[0] = rounded[source]
        nodes.append(node)
    _replace_nodes(graph, nodes)


def widen_tree_outputs(graph: GraphProto) -> None:
    """Trees answer in float32 whatever their input; a double graph expects doubles of them: cast."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type in TREES and _has_double_thresholds(node):
            values = node.output[-1]
            node.output[len(node.output) - 1] = f"{values}.float"
            nodes.append(helper.make_node("Cast", [f"{values}.float"], [values], to=TensorProto.DOUBLE))
    _replace_nodes(graph, nodes)
    for output in graph.output:
        if any(node.op_type == "Cast" and node.output[0] == output.name for node in nodes):
            output.type.tensor_type.elem_type = TensorProto.DOUBLE


def _has_double_thresholds(node: NodeProto) -> bool:
    return any(a.name == "nodes_values_as_tensor" for a in node.attribute)


def _replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)
