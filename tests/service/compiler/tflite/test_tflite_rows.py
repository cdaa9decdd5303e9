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
from service.compiler.tflite import tflite_gate
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
    assert "'red' of the example holds 300; the model's input holds uint8: 0 to 255" in reason(
        tmp_path, whole_numbers("UINT8"), frame
    )


def test_missing_values_of_an_integer_input_are_refused_with_their_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"red": [0, None, 3], "green": [1, 2, 3]})
    assert "'red' has missing values, which the graph's UINT8 input cannot hold" in reason(
        tmp_path, whole_numbers("UINT8"), frame
    )


def test_fractions_are_refused_for_an_integer_input(tmp_path: Path) -> None:
    corrected = {"inputs": [{"name": "x0", "dtype": "float64"}]}
    assert "'x0' is float64; the graph's input holds whole numbers, INT16" in reason(
        tmp_path, whole_numbers("INT16"), signature=corrected
    )
