"""Names and types of a converted graph, and the rounding of its trees' input."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from registry.signature import Input, Output, Signature
from service.compiler.onnx import graph

FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE


def model_of(nodes: list[Any], inputs: list[str], outputs: list[str], initializers: Any = ()) -> ModelProto:
    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, DOUBLE, [None, 2])

    body = helper.make_graph(
        nodes, "g", [value(n) for n in inputs], [value(n) for n in outputs], list(initializers)
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def signature(*features: str, outputs: tuple[Output, ...], task: Any = "regression") -> Signature:
    return Signature(task, tuple(Input(n, "float64") for n in features), outputs)


VALUE = (Output("value", "float64", (-1,)),)


def names(values: Any) -> list[str]:
    return [v.name for v in values]


def test_values_inside_that_have_a_name_of_the_signature_are_renamed() -> None:
    nodes = [
        helper.make_node("Abs", ["input"], ["value"]),
        helper.make_node("Neg", ["value"], ["value_"]),
        helper.make_node("Exp", ["value_"], ["out"]),
    ]
    model = model_of(nodes, ["input"], ["out"])
    graph.name_values(model, signature("a", "b", outputs=VALUE), columns=False)
    onnx.checker.check_model(model)
    assert names(model.graph.input) == ["input"]
    assert names(model.graph.output) == ["value"]
    assert [list(n.output) for n in model.graph.node] == [["value__"], ["value_"], ["out"], ["value"]]
    assert [list(n.input) for n in model.graph.node] == [["input"], ["value__"], ["value_"], ["out"]]
    assert model.graph.output[0].type.tensor_type.elem_type == DOUBLE


def test_an_input_with_the_name_of_an_output_gets_a_suffix() -> None:
    model = model_of([helper.make_node("Add", ["p", "q"], ["out"])], ["p", "q"], ["out"])
    graph.name_values(model, signature("value", "b", outputs=VALUE), columns=True)
    onnx.checker.check_model(model)
    assert names(model.graph.input) == ["value.in", "b"]
    assert list(model.graph.node[0].input) == ["value.in", "b"]


def test_a_transform_returns_the_last_output_and_others_in_order() -> None:
    nodes = [helper.make_node("Abs", ["input"], ["first"]), helper.make_node("Neg", ["input"], ["last"])]
    vector = (Output("vector", "float32", (-1, 2)),)
    model = model_of(nodes, ["input"], ["first", "last"])
    graph.name_values(model, signature("a", "b", outputs=vector, task="transform"), columns=False)
    assert list(model.graph.node[-1].input) == ["last"]
    assert model.graph.output[0].type.tensor_type.elem_type == FLOAT
    outputs = (Output("label", "int64", (-1,)), Output("score", "float64", (-1,)))
    model = model_of(nodes, ["input"], ["first", "last"])
    graph.name_values(model, signature("a", "b", outputs=outputs, task="outlier"), columns=False)
    assert [list(n.input) for n in model.graph.node[-2:]] == [["first"], ["last"]]


def test_each_target_takes_its_own_labels_and_probabilities() -> None:
    outputs = tuple(
        Output(f"y{i}.{last}", "float64", (-1,) if last == "label" else (-1, 2))
        for i in range(2)
        for last in ("label", "probabilities")
    )
    nodes = [helper.make_node("Abs", ["input"], ["labels"]), helper.make_node("Neg", ["input"], ["all"])]
    model = model_of(nodes, ["input"], ["labels", "all"])
    graph.name_values(model, signature("a", "b", outputs=outputs, task="classification"), columns=False)
    taken = [n for n in model.graph.node if n.op_type == "Gather"]
    axes = [next(a.i for a in n.attribute if a.name == "axis") for n in taken]
    constants = {t.name: int(numpy_helper.to_array(t)) for t in model.graph.initializer}
    assert [(n.input[0], constants[n.input[1]]) for n in taken] == [
        ("labels", 0),
        ("all", 0),
        ("labels", 1),
        ("all", 1),
    ]
    assert axes == [1, 0, 1, 0]
    assert names(model.graph.output) == [o.name for o in outputs]


def trees(source: str, out: str, double: bool) -> Any:
    attributes: dict[str, Any] = {}
    if double:
        values = helper.make_tensor("", DOUBLE, [1], np.zeros(1).tobytes(), raw=True)
        attributes["nodes_values_as_tensor"] = values
    return helper.make_node("TreeEnsembleRegressor", [source], [out], domain="ai.onnx.ml", **attributes)


@pytest.mark.parametrize("double", [False, True])
def test_trees_get_their_input_rounded_to_float32_once(double: bool) -> None:
    nodes = [trees("input", "a", double), trees("input", "b", double)]
    model = model_of(nodes, ["input"], ["a", "b"])
    graph.round_tree_inputs(model.graph)
    casts = [n for n in model.graph.node if n.op_type == "Cast"]
    kinds = [n.attribute[0].i for n in casts]
    assert kinds == ([FLOAT, DOUBLE] if double else [FLOAT])
    rounded = casts[-1].output[0]
    assert [n.input[0] for n in model.graph.node if n.op_type.startswith("Tree")] == [rounded, rounded]
    assert casts[0].input[0] == "input"


def test_trees_of_both_precisions_get_a_rounded_input_each() -> None:
    model = model_of([trees("input", "a", False), trees("input", "b", True)], ["input"], ["a", "b"])
    graph.round_tree_inputs(model.graph)
    first, second = (n.input[0] for n in model.graph.node if n.op_type.startswith("Tree"))
    assert first != second
    assert [n.op_type for n in model.graph.node].count("Cast") == 3


def test_an_input_that_is_cast_already_and_other_operators_are_left_alone() -> None:
    nodes = [
        helper.make_node("Cast", ["input"], ["single"], to=FLOAT),
        trees("single", "a", False),
        helper.make_node("Abs", ["input"], ["b"]),
    ]
    model = model_of(nodes, ["input"], ["a", "b"])
    before = model.SerializeToString()
    graph.round_tree_inputs(model.graph)
    assert model.SerializeToString() == before
