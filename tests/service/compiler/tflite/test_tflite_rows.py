"""Published .tflite files: rows that depend on each other or on earlier calls, and integers out of range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from registry.build_messages import BuildResult
from registry.errors import Refused
from registry.rows import Rows
from scripts import edge_predict
from service.compiler.tflite import tflite_gate
from service.compiler.tflite.metadata import read_metadata
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.stamp import pack
from service.compiler.tflite.writer import operator_code
from service.runtime.tflite_runtime import TfliteRuntime
from tests.service.compiler.helpers import build_file
from tests.service.compiler.tflite import recurrent_graphs


def publish(folder: Path, content: bytes, frame: pd.DataFrame | None = None, **options: Any) -> BuildResult:
    (folder / "m.tflite").write_bytes(content)
    return build_file(folder, folder / "m.tflite", frame, format="tflite", **options)


def reason(folder: Path, content: bytes, frame: pd.DataFrame | None = None, **options: Any) -> str:
    built = publish(folder, content, frame, **options)
    assert built.state == "rejected"
    return str(built.report["reason"])


def served(folder: Path, built: BuildResult) -> TfliteRuntime:
    assert built.state == "ready", built.report
    assert built.signature is not None
    return TfliteRuntime(folder / "out" / "model.tflite", built.signature)


def whole_numbers(kind: str, features: int = 2) -> bytes:
    """`y` = the numbers of a row plus 0.5, from an input of this type."""
    graph = Graph(features)
    numbers = graph.operator(
        "CAST", [graph.input], graph.input.shape, "float32", table="CastOptions", outDataType=0
    )
    parsed = schema.ModelT.InitFromPackedBuf(graph.finish({"y": graph.add(numbers, 0.5)}, {}), 0)
    parsed.subgraphs[0].tensors[graph.input.index].type = getattr(schema.TensorType, kind)
    return pack(parsed)


def test_a_graph_that_subtracts_the_mean_of_the_rows_is_refused(tmp_path: Path) -> None:
    assert "calculated from all rows of a call" in reason(tmp_path, recurrent_graphs.minus_mean_of_rows())


def test_the_mean_is_found_where_the_rows_of_the_example_are_equal(tmp_path: Path) -> None:
    frame = pd.DataFrame(np.ones((40, 3)), columns=["a", "b", "c"])
    assert "all rows" in reason(tmp_path, recurrent_graphs.minus_mean_of_rows(), frame)


def test_a_graph_whose_state_goes_from_row_to_row_is_refused(tmp_path: Path) -> None:
    assert "in another order" in reason(tmp_path, recurrent_graphs.recurrent(-1))


def test_each_row_gets_the_answer_of_a_new_interpreter_of_a_stateful_graph(tmp_path: Path) -> None:
    content = recurrent_graphs.recurrent(3)
    runtime = served(tmp_path, publish(tmp_path, content))
    rows = np.random.default_rng(0).normal(size=(5, 6))
    expected = []
    for row in rows.astype(np.float32):
        interpreter = Interpreter(model_content=content)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], row[None])
        interpreter.invoke()
        expected.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    for _ in range(2):
        np.testing.assert_array_equal(runtime.run(Rows(rows))["values"], np.array(expected))
    np.testing.assert_array_equal(runtime.run(Rows(rows[3:4]))["values"], expected[3:4])


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        ("RANDOM_UNIFORM", "draws random numbers"),
        ("MULTINOMIAL", "draws random numbers"),
        ("VAR_HANDLE", "keeps state between calls"),
        ("ASSIGN_VARIABLE", "keeps state between calls"),
    ],
)
def test_chance_and_state_are_refused_by_the_name_of_the_operator(operator: str, message: str) -> None:
    parsed = schema.ModelT.InitFromPackedBuf(whole_numbers("INT32"), 0)
    parsed.operatorCodes.append(operator_code(getattr(schema.BuiltinOperator, operator), 1))
    with pytest.raises(Refused, match=f"uses {operator}, which {message}"):
        tflite_gate.read_checked(pack(parsed))


def signatures(content: bytes, *keys: str, **changes: Any) -> bytes:
    """The file with a signature of each name; `changes` are those of the last one."""
    parsed = schema.ModelT.InitFromPackedBuf(content, 0)
    entries = []
    for key in keys:
        entry = schema.SignatureDefT()
        vars(entry).update(vars(parsed.signatureDefs[0]) | {"signatureKey": key})
        entries.append(entry)
    vars(entries[-1]).update(changes)
    parsed.signatureDefs = entries
    return pack(parsed)


def test_a_file_with_two_functions_is_refused_with_their_names(tmp_path: Path) -> None:
    content = signatures(whole_numbers("INT32"), "embed", "classify", subgraphIndex=1)
    assert "2 signatures, 'embed', 'classify', and only one can be served" in reason(tmp_path, content)


def test_a_signature_of_another_graph_is_refused(tmp_path: Path) -> None:
    content = signatures(whole_numbers("INT32"), "classify", subgraphIndex=1)
    assert "'classify' runs a graph other than its first" in reason(tmp_path, content)


def test_two_names_of_one_function_are_no_choice(tmp_path: Path) -> None:
    served(tmp_path, publish(tmp_path, signatures(whole_numbers("FLOAT32"), "predict", "serving_default")))


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("UINT8", 0, 255),
        ("INT8", -128, 127),
        ("INT16", -(2**15), 2**15 - 1),
        ("INT32", -(2**31), 2**31 - 1),
    ],
)
def test_the_signature_enforces_the_type_of_an_integer_input(
    tmp_path: Path, kind: str, low: int, high: int
) -> None:
    built = publish(tmp_path, whole_numbers(kind))
    runtime = served(tmp_path, built)
    assert built.signature is not None
    bounds = {(i.dtype, i.minimum, i.maximum, i.enforced) for i in built.signature.inputs}
    assert bounds == {("int64", low, high, True)}
    at_bounds = runtime.run(Rows(np.array([[low, high]], dtype=np.float64)))["values"]
    np.testing.assert_allclose(at_bounds[0], [np.float32(low + 0.5), np.float32(high + 0.5)])


def test_a_wide_integer_input_has_no_bounds_of_its_own(tmp_path: Path) -> None:
    built = publish(tmp_path, whole_numbers("INT64"))
    assert built.signature is not None
    assert not built.signature.inputs[0].enforced


def test_integers_that_travel_as_float32_are_bounded(tmp_path: Path) -> None:
    built = publish(
        tmp_path, whole_numbers("FLOAT32"), signature={"inputs": [{"name": "x0", "dtype": "int64"}]}
    )
    assert built.signature is not None
    first, second = built.signature.inputs
    assert (first.minimum, first.maximum, first.enforced) == (-(2**24), 2**24, True)
    assert (second.dtype, second.enforced) == ("float32", False)


def test_an_example_outside_the_type_is_refused_with_its_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"red": [0, 300], "green": [1, 2]})
    assert '"red" of the example holds 300; the model\'s input holds uint8: 0 to 255' in reason(
        tmp_path, whole_numbers("UINT8"), frame
    )


def test_missing_values_of_an_integer_input_are_refused_with_their_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"red": [0, None, 3], "green": [1, 2, 3]})
    assert '"red" has missing values, which the graph\'s UINT8 input cannot hold' in reason(
        tmp_path, whole_numbers("UINT8"), frame
    )


def test_fractions_are_refused_for_an_integer_input(tmp_path: Path) -> None:
    corrected = {"inputs": [{"name": "x0", "dtype": "float64"}]}
    assert '"x0" is float64; the graph\'s input holds whole numbers, INT16' in reason(
        tmp_path, whole_numbers("INT16"), signature=corrected
    )


def test_made_up_rows_that_fail_ask_for_an_example(tmp_path: Path) -> None:
    graph = Graph(1)
    number = graph.gather(graph.constant(np.arange(10.0)), graph.cast(graph.input, "int32"))
    content = graph.finish({"y": graph.mul(number, 2.0)}, {})
    assert "they are made up, so publish it with an example" in reason(tmp_path, content)
    (folder := tmp_path / "example").mkdir()
    served(folder, publish(folder, content, pd.DataFrame({"id": [0, 9, 4]})))


# ---- several labels ----


def sigmoids() -> tuple[bytes, np.ndarray]:
    """Three sigmoids of a row [rows, 2], and the weights before them."""
    graph = Graph(2)
    weights = np.random.default_rng(0).normal(size=(2, 3))
    return graph.finish({"y": graph.logistic(graph.dense(graph.input, weights, 0.0))}, {}), weights


def test_several_sigmoids_are_labels_of_their_own(tmp_path: Path) -> None:
    content, weights = sigmoids()
    built = publish(tmp_path, content)
    assert built.signature is not None
    assert [(o.name, o.classes) for o in built.signature.outputs][4:] == [
        ("y2.label", (0, 1)),
        ("y2.probabilities", (0, 1)),
    ]
    assert "3 sigmoids: each is a label of its own" in built.report["warnings"][0]
    rows = np.random.default_rng(1).normal(size=(20, 2))
    expected, answers = 1 / (1 + np.exp(-rows @ weights)), served(tmp_path, built).run(Rows(rows))
    for label in range(3):
        assert answers[f"y{label}.label"].tolist() == (expected[:, label] > 0.5).astype(int).tolist()
        np.testing.assert_allclose(answers[f"y{label}.probabilities"][:, 1], expected[:, label], atol=1e-6)


def test_a_copy_with_several_labels_can_be_published_and_run_on_a_device(tmp_path: Path) -> None:
    (first := tmp_path / "first").mkdir()
    (second := tmp_path / "second").mkdir()
    signature = {"outputs": [{"name": "y1.label", "classes": ["no", "yes"]}]}
    built = publish(first, sigmoids()[0], signature=signature)
    copy = (first / "out" / "model.tflite").read_bytes()
    again = publish(second, copy)
    assert (again.signature, again.servable) == (built.signature, None)
    rows = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
    answers = served(first, built).run(Rows(rows.astype(np.float64)))
    device = edge_predict.Model(copy).predict(rows)
    assert [p["y1.label"] for p in device] == answers["y1.label"].tolist()
    assert {type(p["y0.label"]) for p in device} == {int}
    got = [p["y1.probabilities"]["yes"] for p in device]
    np.testing.assert_allclose(got, answers["y1.probabilities"][:, 1], atol=1e-6)


def test_the_signature_makes_several_sigmoids_classes_of_one_label(tmp_path: Path) -> None:
    signature = {"outputs": [{"name": "label", "classes": ["a", "b", "c"]}]}
    built = publish(tmp_path, sigmoids()[0], signature=signature)
    assert built.signature is not None
    assert [o.name for o in built.signature.outputs] == ["label", "probabilities"]


def test_a_sigmoid_has_two_classes(tmp_path: Path) -> None:
    signature = {"outputs": [{"name": "y1.label", "classes": ["a", "b", "c"]}]}
    assert "3 classes are given for y1.label" in reason(tmp_path, sigmoids()[0], signature=signature)


def test_numbers_beside_probabilities_are_no_label(tmp_path: Path) -> None:
    graph = Graph(3)
    outputs = {"size": graph.relu(graph.take(graph.input, [0])), "kind": graph.softmax(graph.input)}
    assert "2 outputs of unknown meaning" in reason(tmp_path, graph.finish(outputs, {}))


# ---- on devices ----


def test_a_device_answers_each_row_of_a_stateful_file_as_the_server_does(tmp_path: Path) -> None:
    built = publish(tmp_path, recurrent_graphs.recurrent(3))
    device = edge_predict.Model((tmp_path / "out" / "model.tflite").read_bytes())
    rows = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    expected = served(tmp_path, built).run(Rows(rows.astype(np.float64)))["values"]
    for _ in range(2):
        np.testing.assert_array_equal(device.run(rows)["value"], expected)


def test_the_bounds_of_whole_numbers_travel_with_the_file(tmp_path: Path) -> None:
    (first := tmp_path / "first").mkdir()
    (second := tmp_path / "second").mkdir()
    whole = {"inputs": [{"name": "x1", "dtype": "int64"}]}
    built = publish(first, whole_numbers("FLOAT32"), signature=whole)
    copy = (first / "out" / "model.tflite").read_bytes()
    bounds = read_metadata(copy)["bounds"]
    assert bounds == {"x1": [-(2**24), 2**24]}
    assert publish(second, copy).signature == built.signature
    (file := tmp_path / "rows.csv").write_text("x0,x1\n0.5,16777216\n")
    assert edge_predict.read_rows(file, ["x0", "x1"], bounds).tolist() == [[0.5, 2.0**24]]
    for value in ("16777217", "1.5", ""):
        file.write_text(f"x0,x1\n0.5,1\n0.5,{value}\n")
        with pytest.raises(
            SystemExit, match=r"row 1: x1 is .*; it is a whole number from -16777216 to 16777216"
        ):
            edge_predict.read_rows(file, ["x0", "x1"], bounds)


def test_a_device_refuses_an_input_of_another_type(tmp_path: Path) -> None:
    publish(tmp_path, whole_numbers("INT32"))
    with pytest.raises(SystemExit, match="input holds int32; only float32 is supported"):
        edge_predict.Model((tmp_path / "out" / "model.tflite").read_bytes())
