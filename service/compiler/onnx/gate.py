"""What every .onnx passes before it may be loaded: format, domains, and the structure of its trees."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from registry.errors import Refused
from registry.rows import Array

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})


def check(model: ModelProto) -> None:
    """Raises `Refused`, saying what is wrong. A graph that passes may still answer nonsense: trial-run it."""
    if model.functions:
        raise Refused("the graph defines functions of its own")
    for graph in _graphs(model.graph):
        for tensor in _tensors(graph):
            if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
                raise Refused("the graph keeps data in other files")
        for node in graph.node:
            if node.domain not in DOMAINS:
                raise Refused(f"the graph uses {node.op_type} of the unknown domain {node.domain!r}")
            if node.op_type.startswith("TreeEnsemble"):
                _check_trees(node)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise Refused(f"the graph is not valid ONNX: {first}") from error


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
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
    """Every child exists, has one parent, and no tree has a circle: a circle hangs the runtime."""
    attributes = {a.name: a for a in node.attribute}
    if node.op_type == "TreeEnsemble":
        _check_flat(attributes)
        return
    tree, identity = _ints(attributes, "nodes_treeids"), _ints(attributes, "nodes_nodeids")
    left, right = _ints(attributes, "nodes_truenodeids"), _ints(attributes, "nodes_falsenodeids")
    modes = attributes["nodes_modes"].strings if "nodes_modes" in attributes else []
    inner = np.array([m != b"LEAF" for m in modes], dtype=bool)
    if not len(tree) == len(identity) == len(left) == len(right) == len(inner) > 0:
        raise Refused(f"{node.op_type} has node lists of different lengths")
    if (_ints(attributes, "nodes_featureids") < 0).any():
        raise Refused(f"{node.op_type} splits on a feature that does not exist")
    base = int(identity.max()) + 1 if identity.min() >= 0 else 0
    if not base or int(tree.max()) >= 2**62 // base or tree.min() < 0:
        raise Refused(f"{node.op_type} numbers its nodes out of bounds")
    key = tree * base + identity
    order = np.argsort(key, kind="stable")
    ranked = key[order]
    if (np.diff(ranked) == 0).any():
        raise Refused(f"{node.op_type} has two nodes of one number")
    children = []
    for side in (left, right):
        if (side[inner] < 0).any() or (side[inner] >= base).any():
            raise Refused(f"{node.op_type} has a branch to a node that does not exist")
        wanted = (tree * base + side)[inner]
        at = np.minimum(np.searchsorted(ranked, wanted), len(ranked) - 1)
        if (ranked[at] != wanted).any():
            raise Refused(f"{node.op_type} has a branch to a node that does not exist")
        children.append(order[at])
    _check_acyclic(node.op_type, np.flatnonzero(inner), children[0], children[1], len(key))


def _check_flat(attributes: dict[str, AttributeProto]) -> None:
    """The newer TreeEnsemble: children are indices, into the nodes or, when flagged, into the leaves."""
    left, right = _ints(attributes, "nodes_truenodeids"), _ints(attributes, "nodes_falsenodeids")
    left_leaf, right_leaf = _ints(attributes, "nodes_trueleafs"), _ints(attributes, "nodes_falseleafs")
    leaves = len(_ints(attributes, "leaf_targetids"))
    if not len(left) == len(right) == len(left_leaf) == len(right_leaf) > 0:
        raise Refused("TreeEnsemble has node lists of different lengths")
    for side, leaf in ((left, left_leaf != 0), (right, right_leaf != 0)):
        if (side < 0).any() or (side[leaf] >= leaves).any() or (side[~leaf] >= len(left)).any():
            raise Refused("TreeEnsemble has a branch to a node that does not exist")
    if (_ints(attributes, "nodes_featureids") < 0).any():
        raise Refused("TreeEnsemble splits on a feature that does not exist")
    nodes = np.arange(len(left))
    # a leaf under a node stands for the node itself being done: point those at an extra, childless node
    end = len(left)
    ends = [np.where(leaf != 0, end, side) for side, leaf in ((left, left_leaf), (right, right_leaf))]
    _check_acyclic("TreeEnsemble", nodes, ends[0], ends[1], end + 1, shared=end)


def _check_acyclic(
    what: str, parents: Array, left: Array, right: Array, count: int, shared: int = -1
) -> None:
    """Peels nodes off from the roots, a level at a time; what is left over hangs in a circle."""
    children = np.concatenate([left, right])
    real = children[children != shared]
    if len(np.unique(real)) != len(real):
        raise Refused(f"{what} has a node with two parents")
    one, two = np.full(count, -1), np.full(count, -1)
    one[parents], two[parents] = left, right
    level = np.setdiff1d(np.arange(count), real)
    reached = 0
    while len(level):
        reached += len(level)
        level = np.concatenate([one[level], two[level]])
        level = level[(level >= 0) & (level != shared)]
    if reached < count:
        raise Refused(f"{what} has a tree that runs in a circle")


def _ints(attributes: dict[str, AttributeProto], name: str) -> Array:
    return (
        np.array(attributes[name].ints, dtype=np.int64) if name in attributes else np.empty(0, dtype=np.int64)
    )
