"""ONNX graphs that the gate rejects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
    with pytest.raises(Refused, match="not valid ONNX"):
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


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 3])


def graph_of(node: onnx.NodeProto, initializers: list[TensorProto] | None = None) -> ModelProto:
    graph = helper.make_graph([node], "g", [value("x")], [value("y")], initializers or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
