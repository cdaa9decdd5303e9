"""ONNX graphs that the gate rejects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import make_classification
from sklearn.ensemble import GradientBoostingClassifier

from registry.errors import Refused
from service.compiler.onnx import gate


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 3])


def graph_of(node: onnx.NodeProto, initializers: list[TensorProto] | None = None) -> ModelProto:
    graph = helper.make_graph([node], "g", [value("x")], [value("y")], initializers or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture
def forest() -> ModelProto:
    features, labels = make_classification(100, 4, random_state=0)
    model = GradientBoostingClassifier(n_estimators=3).fit(features, labels)
    graph: ModelProto = convert_sklearn(
        model, initial_types=[("input", FloatTensorType([None, 4]))], target_opset={"": 18, "ai.onnx.ml": 3}
    )
    gate.check(graph)
    return graph


def ints(model: ModelProto, name: str) -> list[int]:
    node = next(n for n in model.graph.node if n.op_type.startswith("TreeEnsemble"))
    values: list[int] = next(a for a in node.attribute if a.name == name).ints
    return values


def first_branch(model: ModelProto) -> int:
    return next(i for i, child in enumerate(ints(model, "nodes_truenodeids")) if child)


def cycle(model: ModelProto) -> None:
    at = first_branch(model)
    ints(model, "nodes_truenodeids")[at] = ints(model, "nodes_nodeids")[at]


def missing_child(model: ModelProto) -> None:
    ints(model, "nodes_falsenodeids")[first_branch(model)] = 10**6


def two_parents(model: ModelProto) -> None:
    at = first_branch(model)
    ints(model, "nodes_falsenodeids")[at] = ints(model, "nodes_truenodeids")[at]


def negative_feature(model: ModelProto) -> None:
    ints(model, "nodes_featureids")[first_branch(model)] = -5


def shorter_list(model: ModelProto) -> None:
    del ints(model, "nodes_falsenodeids")[-1:]


def repeated_number(model: ModelProto) -> None:
    ints(model, "nodes_nodeids")[1] = ints(model, "nodes_nodeids")[0]


@pytest.mark.parametrize(
    "damage", [cycle, missing_child, two_parents, negative_feature, shorter_list, repeated_number]
)
def test_a_damaged_tree_is_rejected(forest: ModelProto, damage: Callable[[ModelProto], None]) -> None:
    damage(forest)
    with pytest.raises(Refused, match="TreeEnsemble"):
        gate.check(forest)


def test_a_cycle_away_from_the_root_is_rejected(forest: ModelProto) -> None:
    left_child, node = ints(forest, "nodes_truenodeids"), ints(forest, "nodes_nodeids")
    branches = [i for i, child in enumerate(left_child) if child]
    below = next(i for i in branches if any(left_child[j] == node[i] for j in branches))
    above = next(j for j in branches if left_child[j] == node[below])
    left_child[below] = node[above]
    with pytest.raises(Refused, match=r"cycle|two parents"):
        gate.check(forest)


def test_data_in_other_files_is_rejected(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones(3, dtype=np.float32), "w")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    with pytest.raises(Refused, match="other files"):
        gate.check(graph_of(helper.make_node("Add", ["x", "w"], ["y"]), [tensor]))


def test_an_unknown_domain_is_rejected() -> None:
    with pytest.raises(Refused, match=r"evil\.ops"):
        gate.check(graph_of(helper.make_node("Run", ["x"], ["y"], domain="evil.ops")))


def test_an_unknown_domain_in_a_subgraph_is_rejected() -> None:
    inner = helper.make_graph(
        [helper.make_node("Run", [], ["z"], domain="evil.ops")], "inner", [], [value("z")]
    )
    condition = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    with pytest.raises(Refused, match=r"evil\.ops"):
        gate.check(graph_of(condition))


def test_invalid_onnx_is_rejected() -> None:
    with pytest.raises(Refused, match=r"not valid ONNX: (?!no reason given).*nothing"):
        gate.check(graph_of(helper.make_node("Add", ["x", "nothing"], ["y"])))


def test_functions_in_the_graph_are_rejected() -> None:
    model = graph_of(helper.make_node("Identity", ["x"], ["y"]))
    model.functions.append(
        helper.make_function(
            "f", "F", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], [onnx.OperatorSetIdProto()]
        )
    )
    with pytest.raises(Refused, match="functions"):
        gate.check(model)


def with_trees(op_type: str, **attributes: object) -> ModelProto:
    """A graph of one node with these trees. Empty lists are left out."""
    given = {name: content for name, content in attributes.items() if content != []}
    node = helper.make_node(op_type, ["x"], ["y"], domain="ai.onnx.ml", **given)
    graph = helper.make_graph([node], "g", [value("x")], [value("y")])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 5 if op_type == FLAT else 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


FLAT = "TreeEnsemble"
NO_NODES: dict[str, list[Any]] = {
    "nodes_treeids": [],
    "nodes_nodeids": [],
    "nodes_featureids": [],
    "nodes_truenodeids": [],
    "nodes_falsenodeids": [],
    "nodes_modes": [],
}
LEAF: dict[str, list[Any]] = {
    "nodes_treeids": [0],
    "nodes_nodeids": [0],
    "nodes_featureids": [0],
    "nodes_truenodeids": [0],
    "nodes_falsenodeids": [0],
    "nodes_modes": ["LEAF"],
}
STUMPS: dict[str, list[Any]] = {  # two trees of three nodes each
    "nodes_treeids": [0, 0, 0, 1, 1, 1],
    "nodes_nodeids": [0, 1, 2, 0, 1, 2],
    "nodes_featureids": [0] * 6,
    "nodes_truenodeids": [1, 0, 0, 1, 0, 0],
    "nodes_falsenodeids": [2, 0, 0, 2, 0, 0],
    "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"] * 2,
}


def trees(
    changes: dict[str, dict[int, int]] | None = None, start: dict[str, list[Any]] = STUMPS
) -> ModelProto:
    """`start` with other numbers: by name of a list, the numbers by place."""
    attributes = {name: list(values) for name, values in start.items()}
    for name, places in (changes or {}).items():
        for place, number in places.items():
            attributes[name][place] = number
    leaves = [i for i, mode in enumerate(attributes["nodes_modes"]) if mode == "LEAF"]
    return with_trees(
        "TreeEnsembleRegressor",
        n_targets=1,
        nodes_values=[0.5] * len(attributes["nodes_modes"]),
        target_treeids=[attributes["nodes_treeids"][i] for i in leaves],
        target_nodeids=[attributes["nodes_nodeids"][i] for i in leaves],
        target_ids=[0] * len(leaves),
        target_weights=[1.0] * len(leaves),
        **attributes,
    )


def test_the_smallest_trees_and_the_first_and_last_numbers_are_accepted() -> None:
    gate.check(trees(start=LEAF))
    gate.check(trees())
    gate.check(trees({"nodes_nodeids": {0: 5}}))  # the root of the first tree has its last number
    largest = 2**62 // 3 - 1  # the largest number of a tree of three nodes
    gate.check(trees({"nodes_treeids": {3: largest, 4: largest, 5: largest}}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nodes_falsenodeids": {0: 3}}, "a branch to a node that does not exist"),  # the root of tree 1
        ({"nodes_truenodeids": {0: 3}}, "a branch to a node that does not exist"),
        ({"nodes_falsenodeids": {3: -1}}, "a branch to a node that does not exist"),  # a leaf of tree 0
        ({"nodes_truenodeids": {3: -1}}, "a branch to a node that does not exist"),
        ({"nodes_nodeids": {5: 3}}, "a branch to a node that does not exist"),
        ({"nodes_nodeids": {1: 3}}, "a branch to a node that does not exist"),
        ({"nodes_nodeids": {1: -1}}, "node numbers out of range"),
        ({"nodes_treeids": {0: -1, 1: -1, 2: -1}}, "node numbers out of range"),
        ({"nodes_treeids": dict.fromkeys((3, 4, 5), 2**62 // 3)}, "node numbers out of range"),
        ({"nodes_nodeids": {1: 2}}, "two nodes with the same number"),
        ({"nodes_featureids": {0: -1}}, "a feature that does not exist"),
        ({"nodes_falsenodeids": {0: 1}}, "a node with two parents"),
        ({"nodes_falsenodeids": {0: 0}}, "a tree with a cycle"),
    ],
)
def test_a_number_beyond_the_trees_is_rejected(changes: dict[str, dict[int, int]], words: str) -> None:
    with pytest.raises(Refused, match=words):
        gate.check(trees(changes))


def test_a_cycle_apart_from_the_root_is_rejected() -> None:
    loop: dict[str, list[Any]] = {
        "nodes_treeids": [0] * 5,
        "nodes_nodeids": [0, 1, 2, 3, 4],
        "nodes_featureids": [0] * 5,
        "nodes_truenodeids": [0, 2, 1, 0, 0],
        "nodes_falsenodeids": [0, 3, 4, 0, 0],
        "nodes_modes": ["LEAF", "BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF"],
    }
    with pytest.raises(Refused, match="TreeEnsembleRegressor has a tree with a cycle"):
        gate.check(trees(start=loop))


@pytest.mark.parametrize("name", sorted(set(LEAF) - {"nodes_featureids"}))
def test_a_list_of_nodes_that_is_one_shorter_is_rejected(name: str) -> None:
    model = trees()
    attribute = next(a for a in model.graph.node[0].attribute if a.name == name)
    del (attribute.strings if name == "nodes_modes" else attribute.ints)[-1:]
    with pytest.raises(Refused, match="node lists of different lengths"):
        gate.check(model)


def test_trees_without_nodes_are_rejected() -> None:
    with pytest.raises(Refused, match="node lists of different lengths"):
        gate.check(trees(start=NO_NODES))
    with pytest.raises(Refused, match="TreeEnsemble has node lists of different lengths"):
        gate.check(flat_trees([], [], [], [], leaves=1))


def flat_trees(
    true_nodes: list[int],
    false_nodes: list[int],
    true_leaves: list[int],
    false_leaves: list[int],
    leaves: int = 2,
    features: list[int] | None = None,
) -> ModelProto:
    """The newer operator. A flag of 1 makes the number beside it the number of a leaf."""
    count = len(true_nodes)
    return with_trees(
        FLAT,
        n_targets=1,
        aggregate_function=1,
        post_transform=0,
        tree_roots=[0],
        nodes_featureids=[0] * count if features is None else features,
        nodes_modes=numpy_helper.from_array(np.zeros(count, dtype=np.uint8)),
        nodes_splits=numpy_helper.from_array(np.full(count, 0.5, dtype=np.float32)),
        nodes_truenodeids=true_nodes,
        nodes_falsenodeids=false_nodes,
        nodes_trueleafs=true_leaves,
        nodes_falseleafs=false_leaves,
        leaf_targetids=[0] * leaves,
        leaf_weights=numpy_helper.from_array(np.ones(leaves, dtype=np.float32)),
    )


def test_flat_trees_may_share_leaves_and_use_the_last_leaf_and_the_last_node() -> None:
    gate.check(flat_trees([0], [1], [1], [1]))
    gate.check(flat_trees([0], [0], [1], [1], leaves=1))
    gate.check(flat_trees([1, 2, 0], [0, 1, 1], [0, 0, 1], [1, 1, 1]))
    gate.check(flat_trees([1, 4], [4, 0], [0, 1], [1, 1], leaves=5))  # more leaves than nodes


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (flat_trees([2], [1], [1], [1]), "does not exist"),  # the number of leaves
        (flat_trees([0], [2], [1], [1]), "does not exist"),
        (flat_trees([-1], [1], [1], [1]), "does not exist"),
        (flat_trees([0], [-1], [1], [1]), "does not exist"),
        (flat_trees([1], [1], [0], [1]), "does not exist"),  # the number of nodes
        (flat_trees([0], [1], [1], [0]), "does not exist"),
        (flat_trees([0], [1], [0], [1]), "cycle"),
        (flat_trees([0, 2, 1], [1, 0, 1], [1, 0, 0], [1, 1, 1]), "cycle"),
        (flat_trees([1, 0], [1, 1], [0, 1], [0, 1]), "two parents"),
        (flat_trees([0], [1], [1], [1], features=[-1]), "feature that does not exist"),
        (flat_trees([0, 0], [1], [1], [1], features=[0]), "different lengths"),
        (flat_trees([0], [1, 1], [1], [1]), "different lengths"),
        (flat_trees([0], [1], [1, 1], [1]), "different lengths"),
        (flat_trees([0], [1], [1], [1, 1]), "different lengths"),
    ],
)
def test_a_branch_beyond_the_leaves_or_nodes_of_flat_trees_is_rejected(model: ModelProto, words: str) -> None:
    with pytest.raises(Refused, match=f"TreeEnsemble .*{words}"):
        gate.check(model)


def external(tensor: TensorProto) -> TensorProto:
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def weights() -> TensorProto:
    return numpy_helper.from_array(np.ones(3, dtype=np.float32), "w")


def test_data_in_other_files_is_rejected_wherever_a_graph_holds_tensors() -> None:
    constant = helper.make_node("Constant", [], ["y"], value=external(weights()))
    several = helper.make_node("Identity", ["x"], ["y"])
    several.attribute.append(helper.make_attribute("several", [external(weights())]))
    inner = helper.make_graph([constant], "inner", [], [value("y")])
    nested = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    listed = helper.make_node("Identity", ["x"], ["y"])
    listed.attribute.append(helper.make_attribute("bodies", [inner]))
    path_only = weights()
    path_only.external_data.add(key="location", value="elsewhere")
    models = [graph_of(node) for node in (constant, several, nested, listed)]
    models.append(graph_of(helper.make_node("Add", ["x", "w"], ["y"]), [path_only]))
    for part in ("values", "indices"):
        model = graph_of(helper.make_node("Add", ["x", "w"], ["y"]))
        sparse = model.graph.sparse_initializer.add()
        external(getattr(sparse, part))
        models.append(model)
    for model in models:
        with pytest.raises(Refused, match="other files"):
            gate.check(model)
