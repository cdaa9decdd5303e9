"""Published .onnx files as other tools write them: weights as inputs, other types, dependent rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper

from registry.build_messages import BuildResult
from registry.rows import Rows
from service.runtime.onnx_runtime import OnnxRuntime
from tests.service.compiler.helpers import build_file, runtime

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
WEIGHTS = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)


def value(name: str, kind: int, *shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def graph(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], opset: int = 18, ir: int = 8, **constants: Any
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    if ir < 4:
        inputs = [*inputs, *(value(t.name, t.data_type, *t.dims) for t in tensors)]
    made = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def one(
    operator: str, opset: int = 18, shape: tuple[Any, ...] = (None, 3), **attributes: Any
) -> onnx.ModelProto:
    """y = operator(x) of float [rows, 3]."""
    node = helper.make_node(operator, ["x"], ["y"], **attributes)
    return graph([node], [value("x", FLOAT, *shape)], [value("y", FLOAT, *shape)], opset)


def publish(
    folder: Path, model: onnx.ModelProto, frame: pd.DataFrame | None = None, **options: Any
) -> BuildResult:
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return build_file(folder, folder / "m.onnx", frame, format="onnx", **options)


def served(folder: Path, built: BuildResult) -> OnnxRuntime:
    assert built.state == "ready", built.report
    loaded: OnnxRuntime = runtime(folder, built)
    return loaded


def reason(folder: Path, model: onnx.ModelProto, frame: pd.DataFrame | None = None, **options: Any) -> str:
    built = publish(folder, model, frame, **options)
    assert built.state == "rejected", built.signature
    return str(built.report["reason"])


# ---- rows that depend on each other ----


def over_rows(operator: str) -> onnx.ModelProto:
    nodes = {
        "ReduceMean": [
            helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=1),
            helper.make_node("Sub", ["x", "m"], ["y"]),
        ],
        "CumSum": [helper.make_node("CumSum", ["x", "axis"], ["y"])],
        "Softmax": [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
    }[operator]
    shape = [value("x", FLOAT, None, 3)], [value("y", FLOAT, None, 3)]
    return graph(nodes, *shape, axes=np.array([0]), axis=np.array(0))


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        ("ReduceMean", "calculated from all rows of a call"),
        ("CumSum", "in another order, or with other rows beside it"),
        ("Softmax", "in another order, or with other rows beside it"),
    ],
)
def test_a_graph_that_calculates_with_all_rows_is_refused(
    tmp_path: Path, operator: str, message: str
) -> None:
    assert message in reason(tmp_path, over_rows(operator))


@pytest.mark.parametrize("operator", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_random_numbers_are_refused_by_the_name_of_the_operator(tmp_path: Path, operator: str) -> None:
    assert f"uses {operator}, which draws random numbers" in reason(tmp_path, one(operator))


def test_batch_normalization_in_training_mode_is_refused(tmp_path: Path) -> None:
    names = ["scale", "bias", "mean", "var"]
    node = helper.make_node("BatchNormalization", ["x", *names], ["y", "m", "v"], training_mode=1)
    constants: dict[str, Any] = {name: np.ones(3, np.float32) for name in names}
    model = graph([node], [value("x", FLOAT, None, 3)], [value("y", FLOAT, None, 3)], **constants)
    assert "BatchNormalization in training mode" in reason(tmp_path, model)


@pytest.mark.parametrize(("training", "refused"), [(True, True), (False, False), (None, False)])
def test_dropout_is_refused_in_training_mode_alone(
    tmp_path: Path, training: bool | None, refused: bool
) -> None:
    nodes = [helper.make_node("Dropout", ["x"] if training is None else ["x", "", "training"], ["y"])]
    if training is not None:
        mode = numpy_helper.from_array(np.array(training))
        nodes.insert(0, helper.make_node("Constant", [], ["training"], value=mode))
    model = graph(nodes, [value("x", FLOAT, None, 3)], [value("y", FLOAT, None, 3)])
    if refused:
        assert "Dropout in training mode" in reason(tmp_path, model)
    else:
        assert publish(tmp_path, model).state == "ready"


def test_a_normalization_of_each_row_is_served(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 3))
    got = served(tmp_path, publish(tmp_path, one("Softmax", axis=1))).run(Rows(rows))["values"]
    np.testing.assert_allclose(got, np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True), atol=1e-6)


# ---- weights, opsets, batches ----


def dense(**options: Any) -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    batch = options.pop("batch", None)
    return graph([node], [value("x", FLOAT, batch, 3)], [value("y", FLOAT, batch, 2)], w=WEIGHTS, **options)


def test_weights_may_be_listed_as_inputs(tmp_path: Path) -> None:
    built = publish(tmp_path, dense(ir=3, opset=7))
    assert built.signature is not None, built.report
    assert [i.name for i in built.signature.inputs] == ["x0", "x1", "x2"]
    rows = np.random.default_rng(1).normal(size=(4, 3))
    np.testing.assert_allclose(served(tmp_path, built).run(Rows(rows))["values"], rows @ WEIGHTS, atol=1e-6)


def test_an_opset_that_the_runtime_does_not_support_is_refused_with_the_remedy(tmp_path: Path) -> None:
    assert "opset 6; ONNX Runtime supports those from opset 7 on" in reason(tmp_path, dense(ir=3, opset=6))


def test_a_future_opset_or_ir_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "ir").mkdir()
    assert "opset 99; the newest known here is" in reason(tmp_path, dense(opset=99))
    assert "ir_version" in reason(tmp_path / "ir", dense(ir=99))


def test_a_graph_of_a_fixed_batch_takes_any_number_of_rows(tmp_path: Path) -> None:
    built = publish(tmp_path, dense(batch=32))
    assert built.report["warnings"] == []
    assert served(tmp_path, built).run(Rows(np.ones((3, 3))))["values"].shape == (3, 2)


def for_rows(count: int) -> onnx.ModelProto:
    """Reshapes to a fixed number of rows before it multiplies."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    shapes = [value("x", FLOAT, count, 3)], [value("y", FLOAT, count, 2)]
    return graph(nodes, *shapes, w=WEIGHTS, shape=np.array([count, 3]))


def test_a_graph_for_one_row_runs_row_by_row(tmp_path: Path) -> None:
    built = publish(tmp_path, for_rows(1))
    assert "runs one row at a time" in built.report["warnings"][0]
    loaded, rows = served(tmp_path, built), np.random.default_rng(1).normal(size=(4, 3))
    np.testing.assert_allclose(loaded.run(Rows(rows))["values"], rows @ WEIGHTS, atol=1e-6)
    assert loaded.run(Rows(rows[:0]))["values"].shape == (0, 2)


def test_a_graph_for_several_rows_at_a_time_is_refused(tmp_path: Path) -> None:
    assert "the graph fails on 500 rows" in reason(tmp_path, for_rows(8))


# ---- inputs and outputs ----


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("UINT8", 0, 255),
        ("INT8", -128, 127),
        ("UINT16", 0, 65535),
        ("INT32", -(2**31), 2**31 - 1),
        ("UINT32", 0, 2**32 - 1),
    ],
)
def test_the_signature_enforces_the_type_of_an_integer_input(
    tmp_path: Path, kind: str, low: int, high: int
) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE)]
    element = getattr(TensorProto, kind)
    model = graph(nodes, [value("x", element, None, 2)], [value("y", TensorProto.DOUBLE, None, 2)])
    built = publish(tmp_path, model)
    assert built.signature is not None, built.report
    bounds = {(i.dtype, i.minimum, i.maximum, i.enforced) for i in built.signature.inputs}
    assert bounds == {("int64", low, high, True)}
    rows = np.array([[low, high], [0, 1]], dtype=np.float64)
    assert served(tmp_path, built).run(Rows(rows))["values"].tolist() == rows.tolist()


def test_an_example_outside_the_type_is_refused_with_its_column(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=FLOAT)]
    model = graph(nodes, [value("x", TensorProto.INT8, None, 2)], [value("y", FLOAT, None, 2)])
    frame = pd.DataFrame({"a": [1, 2], "b": [3, 128]})
    assert '"b" of the example holds 128; the model\'s input holds int8' in reason(tmp_path, model, frame)


def test_half_precision_is_served_as_float32(tmp_path: Path) -> None:
    half = TensorProto.FLOAT16
    node = helper.make_node("Neg", ["x"], ["y"])
    built = publish(tmp_path, graph([node], [value("x", half, None, 2)], [value("y", half, None, 2)]))
    assert built.signature is not None, built.report
    assert (built.signature.inputs[0].dtype, built.signature.outputs[0].dtype) == ("float32", "float32")
    assert served(tmp_path, built).run(Rows(np.array([[0.5, 2.0]])))["values"].tolist() == [[-0.5, -2.0]]


def test_a_graph_without_inputs_is_refused(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["y"], value_float=1.0)
    assert "the graph has no inputs" in reason(tmp_path, graph([constant], [], [value("y", FLOAT)]))


def test_a_graph_without_outputs_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Neg", ["x"], ["y"])
    assert "the graph has no outputs" in reason(tmp_path, graph([node], [value("x", FLOAT, None, 2)], []))


def test_an_input_of_another_kind_is_named(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("x", FLOAT, [None, 2])
    node = helper.make_node("ConcatFromSequence", ["x"], ["y"], axis=0)
    assert "'x' has an element type that neither" in reason(
        tmp_path, graph([node], [sequence], [value("y", FLOAT, None, 2)])
    )


def test_made_up_rows_that_fail_ask_for_an_example(tmp_path: Path) -> None:
    table = helper.make_node("Gather", ["t", "x"], ["y"])
    shapes = [value("x", INT64, None)], [value("y", FLOAT, None)]
    model = graph([table], *shapes, t=np.array([7.0, 8.0], np.float32))
    assert "they are made up, so publish it with an example" in reason(tmp_path, model)
    (folder := tmp_path / "example").mkdir()
    built = publish(folder, model, pd.DataFrame({"x": [0, 1, 1]}))
    assert served(folder, built).run(Rows(np.array([[1.0], [0.0]])))["value"].tolist() == [8.0, 7.0]


def test_a_row_of_the_example_that_the_graph_refuses_is_named(tmp_path: Path) -> None:
    table = helper.make_node("Gather", ["t", "x"], ["y"])
    shapes = [value("x", INT64, None)], [value("y", FLOAT, None)]
    model = graph([table], *shapes, t=np.array([7.0, 8.0], np.float32))
    frame = pd.DataFrame({"x": [0, 1, 0, 0, 1, 5, 1]})
    assert "fails on 7 rows: it refuses row 5 of the example (the first is 0)" in reason(
        tmp_path, model, frame
    )


def test_outputs_that_are_not_served_are_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["price"]), helper.make_node("Abs", ["x"], ["size"])]
    outputs = [value("price", FLOAT, None, 1), value("size", FLOAT, None, 1)]
    built = publish(tmp_path, graph(nodes, [value("x", FLOAT, None, 1)], outputs))
    assert built.report["warnings"] == ["outputs of the graph that are not served as regression: 'size'"]


def test_several_labels_of_a_row_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["label"], to=INT64)]
    model = graph(nodes, [value("x", FLOAT, None, 3)], [value("label", INT64, None, 3)])
    assert "output 'label' holds several labels for a row" in reason(tmp_path, model)
    (folder := tmp_path / "open").mkdir()
    model.graph.output[0].type.tensor_type.shape.dim[1].Clear()
    assert "1500 of the output 'label' to 500 rows" in reason(folder, model)


def test_numbers_are_no_label(tmp_path: Path) -> None:
    assert "'y' holds float32, so it is not a label" in reason(
        tmp_path, dense(), signature={"task": "classification"}
    )


def test_data_in_other_files_is_refused_with_the_remedy(tmp_path: Path) -> None:
    model = dense()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="w.bin")
    built = build_file(tmp_path, tmp_path / "m.onnx", format="onnx")
    assert "keeps data in other files; save it as one file" in built.report["reason"]
