"""The checks of every .onnx file before it is loaded: format, domains, and the structure of its trees."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from registry.errors import Refused
from registry.rows import Array

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
MIN_OPSET = 7
"""The oldest operators that ONNX Runtime supports."""
_RANDOM = frozenset(
    {
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"),
        *("RandomUniform", "RandomUniformLike"),
    }
)


def check(model: ModelProto) -> None:
    """Raise `Refused`, with the reason, for a graph that must not be loaded.

    A graph that passes may still return meaningless answers: it has to run on rows as well.
    """
    if model.functions:
        raise Refused(
            "the graph defines functions of its own; replace them by their operators with "
            "onnx.inliner.inline_local_functions"
        )
    for graph in _graphs(model.graph):
        for tensor in _tensors(graph):
            if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
                raise Refused(
                    "the graph keeps data in other files; save it as one file: load it beside them with "
                    "onnx.load, and onnx.save(model, file, save_as_external_data=False)"
                )
        for node in graph.node:
            if node.domain not in DOMAINS:
                raise Refused(f"the graph uses {node.op_type} of the unknown domain {node.domain!r}")
            _check_inference(node, graph)
            if node.op_type.startswith("TreeEnsemble"):
                _check_trees(node)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), MIN_OPSET)
    if opset < MIN_OPSET:
        raise Refused(
            f"the graph uses the operators of opset {opset}; ONNX Runtime supports those from opset "
            f"{MIN_OPSET} on: convert it with onnx.version_converter.convert_version(model, 13)"
        )
    if opset > (newest := onnx.defs.onnx_opset_version()):
        raise Refused(
            f"the graph uses the operators of opset {opset}; the newest known here is {newest}: export it "
            "with an older opset"
        )
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise Refused(f"the graph is not valid ONNX: {first}") from error


def _check_inference(node: NodeProto, graph: GraphProto) -> None:
    """Raise `Refused` for operators that draw random numbers or take statistics from the rows of a call."""
    if node.op_type in _RANDOM and node.domain in ("", "ai.onnx"):
        raise Refused(
            f"the graph uses {node.op_type}, which draws random numbers: a row would get another answer each "
            "time; export the model in inference mode"
        )
    training = any(a.name == "training_mode" and a.i for a in node.attribute)
    if node.op_type == "BatchNormalization" and training:
        raise Refused(
            "the graph has BatchNormalization in training mode, which takes the mean of all rows of a call; "
            "export the model in inference mode"
        )
    if node.op_type == "Dropout" and len(node.input) > 2 and not _is_false(node.input[2], graph):
        raise Refused(
            "the graph has Dropout in training mode, which removes values by chance; export the model in "
            "inference mode"
        )


def _is_false(name: str, graph: GraphProto) -> bool:
    """Whether the value `name` is absent, or is false in every call."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    return not name or (name in constants and not onnx.numpy_helper.to_array(constants[name]).any())


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` and all its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graphs(inner)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t


def _check_trees(node: NodeProto) -> None:
    """Every child exists and has one parent, and no tree has a cycle: a cycle makes the runtime hang."""
    attributes = {a.name: a for a in node.attribute}
    if node.op_type == "TreeEnsemble":
        _check_flat_trees(attributes)
        return
    tree, identity = _ints(attributes, "nodes_treeids"), _ints(attributes, "nodes_nodeids")
    left_child, right_child = _ints(attributes, "nodes_truenodeids"), _ints(attributes, "nodes_falsenodeids")
    modes = attributes["nodes_modes"].strings if "nodes_modes" in attributes else []
    inner = np.array([m != b"LEAF" for m in modes], dtype=bool)
    if not len(tree) == len(identity) == len(left_child) == len(right_child) == len(inner) > 0:
        raise Refused(f"{node.op_type} has node lists of different lengths")
    if (_ints(attributes, "nodes_featureids") < 0).any():
        raise Refused(f"{node.op_type} splits on a feature that does not exist")
    base = int(identity.max()) + 1 if identity.min() >= 0 else 0
    if not base or int(tree.max()) >= 2**62 // base or tree.min() < 0:
        raise Refused(f"{node.op_type} has node numbers out of range")
    key = tree * base + identity
    order = np.argsort(key, kind="stable")
    sorted_keys = key[order]
    if (np.diff(sorted_keys) == 0).any():
        raise Refused(f"{node.op_type} has two nodes with the same number")
    children = []
    for side in (left_child, right_child):
        if (side[inner] < 0).any() or (side[inner] >= base).any():
            raise Refused(f"{node.op_type} has a branch to a node that does not exist")
        child_keys = (tree * base + side)[inner]
        at = np.minimum(np.searchsorted(sorted_keys, child_keys), len(sorted_keys) - 1)
        if (sorted_keys[at] != child_keys).any():
            raise Refused(f"{node.op_type} has a branch to a node that does not exist")
        children.append(order[at])
    _check_acyclic(node.op_type, np.flatnonzero(inner), children[0], children[1], len(key))


def _check_flat_trees(attributes: dict[str, AttributeProto]) -> None:
    """The newer TreeEnsemble: children are indices into the nodes or, where flagged, into the leaves."""
    left_child, right_child = _ints(attributes, "nodes_truenodeids"), _ints(attributes, "nodes_falsenodeids")
    left_leaf, right_leaf = _ints(attributes, "nodes_trueleafs"), _ints(attributes, "nodes_falseleafs")
    leaves = len(_ints(attributes, "leaf_targetids"))
    if not len(left_child) == len(right_child) == len(left_leaf) == len(right_leaf) > 0:
        raise Refused("TreeEnsemble has node lists of different lengths")
    for side, leaf in ((left_child, left_leaf != 0), (right_child, right_leaf != 0)):
        if (side < 0).any() or (side[leaf] >= leaves).any() or (side[~leaf] >= len(left_child)).any():
            raise Refused("TreeEnsemble has a branch to a node that does not exist")
    if (_ints(attributes, "nodes_featureids") < 0).any():
        raise Refused("TreeEnsemble splits on a feature that does not exist")
    nodes = np.arange(len(left_child))
    # all branches to leaves get one extra node without children, which may have several parents
    shared = len(left_child)
    ends = [
        np.where(leaf != 0, shared, side)
        for side, leaf in ((left_child, left_leaf), (right_child, right_leaf))
    ]
    _check_acyclic("TreeEnsemble", nodes, ends[0], ends[1], shared + 1, shared=shared)


def _check_acyclic(
    operator: str, parents: Array, left_child: Array, right_child: Array, count: int, shared: int = -1
) -> None:
    """Remove the nodes level by level from the roots on; nodes that are never reached are in a cycle.

    `shared` is a node that may have several parents; -1 for none.
    """
    children = np.concatenate([left_child, right_child])
    single = children[children != shared]
    if len(np.unique(single)) != len(single):
        raise Refused(f"{operator} has a node with two parents")
    left_of, right_of = np.full(count, -1), np.full(count, -1)
    left_of[parents], right_of[parents] = left_child, right_child
    level = np.setdiff1d(np.arange(count), single)
    reached = 0
    while len(level):
        reached += len(level)
        level = np.concatenate([left_of[level], right_of[level]])
        level = level[(level >= 0) & (level != shared)]
    if reached < count:
        raise Refused(f"{operator} has a tree with a cycle")


def _ints(attributes: dict[str, AttributeProto], name: str) -> Array:
    values = attributes[name].ints if name in attributes else []
    return np.array(values, dtype=np.int64)
