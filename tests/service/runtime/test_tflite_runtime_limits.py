"""Numbers at the limits of a .tflite file: quantized steps, labels, and rows per block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from registry.errors import Invalid, Unavailable
from registry.rows import Array, Rows
from registry.signature import Input, Output, Signature
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.stamp import pack
from service.compiler.tflite.writer import GraphTensor
from service.runtime import tflite_runtime
from service.runtime.tflite_runtime import BLOCK_ROWS, TfliteRuntime

ONE = (Input("a", "float64"),)
LABEL = Signature("classification", ONE, (Output("label", "string", (-1,), ("p", "q", "r")),))


def runtime_of(folder: Path, graph: Graph, signature: Signature, **outputs: GraphTensor) -> TfliteRuntime:
    path = folder / "model.tflite"
    path.write_bytes(graph.finish(outputs, {}))
    return TfliteRuntime(path, signature)


def column(*values: float) -> Rows:
    return Rows(matrix=np.array(values).reshape(-1, 1))


def test_a_label_is_an_index_into_the_classes_and_nothing_else(tmp_path: Path) -> None:
    graph = Graph(1)
    label = graph.reshape(graph.cast(graph.input, "int64"), (-1,))
    runtime = runtime_of(tmp_path, graph, LABEL, label=label)
    assert runtime.run(column(0, 1, 2))["label"].tolist() == ["p", "q", "r"]
    for index in (3, -1, -3, -4):
        with pytest.raises(Invalid, match="a label that is none of its classes"):
            runtime.run(column(0, index))


def test_without_a_label_the_first_largest_probability_is_the_label(tmp_path: Path) -> None:
    graph = Graph(3)
    probabilities = graph.reshape(graph.input, (-1, 3))
    inputs = tuple(Input(n, "float64") for n in "abc")
    classes = LABEL.outputs[0].classes
    outputs = (*LABEL.outputs, Output("probabilities", "float32", (-1, 3), classes))
    signature = Signature("classification", inputs, outputs)
    runtime = runtime_of(tmp_path, graph, signature, probabilities=probabilities)
    rows = np.array([[0.5, 0.5, 0.0], [0.2, 0.4, 0.4], [0.0, 0.0, 1.0]])
    answered = runtime.run(Rows(matrix=rows))
    assert answered["label"].tolist() == ["p", "q", "r"]
    np.testing.assert_array_equal(answered["probabilities"], rows.astype(np.float32))


@pytest.mark.parametrize("size", [0, 1, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 2 * BLOCK_ROWS, 600])
def test_long_batches_run_in_blocks(tmp_path: Path, size: int) -> None:
    graph = Graph(1)
    signature = Signature("regression", ONE, (Output("value", "float32", (-1,)),))
    runtime = runtime_of(tmp_path, graph, signature, value=graph.add(graph.input, 1.0))
    answered = runtime.run(column(*range(size)) if size else Rows(matrix=np.empty((0, 1))))
    assert answered["value"].tolist() == [n + 1.0 for n in range(size)]
    assert runtime._allocated_rows <= BLOCK_ROWS


def detail(dtype: Any, scale: float = 0.0, zero: int = 0) -> dict[str, Any]:
    return {"dtype": dtype, "quantization": (scale, zero)}


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ([0.0, 0.5, 0.24, 0.26, -0.5], detail(np.int8, 0.5, 3), [3, 4, 3, 4, 2]),
        ([62.0, 62.5, 1e9], detail(np.int8, 0.5, 3), [127, 127, 127]),
        ([-65.5, -66.0, -1e9], detail(np.int8, 0.5, 3), [-128, -128, -128]),
        ([-1.0, 255.0, 256.0], detail(np.uint8, 1.0, 0), [0, 255, 255]),
        ([np.nan, np.inf, -np.inf], detail(np.int8, 0.5, 3), [3, 127, -128]),
        ([1.5, -2.5], detail(np.float32), [1.5, -2.5]),
        ([1e300], detail(np.float32), [np.inf]),
        ([1.0, 2.0], detail(np.int32), [1, 2]),
        ([1.0], detail(np.float32, 0.5, 3), [1.0]),  # float tensors have no steps
    ],
)
def test_numbers_become_the_steps_of_a_quantized_input(
    value: list[float], kind: dict[str, Any], expected: list[float]
) -> None:
    steps = tflite_runtime._quantize(np.array(value), kind)
    assert (steps.dtype, steps.tolist()) == (np.dtype(kind["dtype"]), expected)


@pytest.mark.parametrize(
    ("steps", "kind", "expected"),
    [
        (np.array([-128, 3, 127], dtype=np.int8), detail(np.int8, 0.5, 3), [-65.5, 0.0, 62.0]),
        (np.array([0, 255], dtype=np.uint8), detail(np.uint8, 2.0, 1), [-2.0, 508.0]),
        (np.array([5, 7]), detail(np.int64), [5, 7]),
        (np.array([1.5], dtype=np.float32), detail(np.float32, 0.5, 3), [1.5]),
    ],
)
def test_the_steps_of_a_quantized_output_become_numbers(
    steps: Array, kind: dict[str, Any], expected: list[float]
) -> None:
    assert tflite_runtime._dequantize(steps, kind).tolist() == expected


def test_a_file_for_another_number_of_features_is_unavailable(tmp_path: Path) -> None:
    outputs = (Output("value", "float32", (-1,)),)
    for width in (1, 3):
        graph = Graph(width)
        value = graph.total(graph.input, axis=1)
        signature = Signature("regression", (ONE[0], Input("b", "float64")), outputs)
        with pytest.raises(Unavailable, match=f"holds {width} numbers, the signature has 2 features"):
            runtime_of(tmp_path, graph, signature, value=graph.reshape(value, (-1,)))


def test_the_output_value_may_stand_for_values(tmp_path: Path) -> None:
    inputs = tuple(Input(n, "float64") for n in "ab")
    signature = Signature("regression", inputs, (Output("values", "float64", (-1, 2)),))
    graph = Graph(2)
    runtime = runtime_of(tmp_path, graph, signature, value=graph.mul(graph.input, 2.0))
    assert runtime.run(Rows(matrix=np.array([[1.0, 2.0]])))["values"].tolist() == [[2.0, 4.0]]
    assert runtime.bytes == 3 * (tmp_path / "model.tflite").stat().st_size


def difference(named: bool, rows: int) -> bytes:
    """`a` - `b`, with the input `b` first, for any number of `rows` (-1) or for one row."""
    graph = Graph(1)
    model = schema.ModelT.InitFromPackedBuf(graph.finish({"value": graph.sub(graph.input, 5.0)}, {}), 0)
    (body,) = model.subgraphs
    first, second, out = body.tensors
    first.name, second.name, out.shape = "a", "b", [1, 1]
    second.shape, second.buffer = [1, 1], 0
    for tensor in body.tensors:
        tensor.shapeSignature = [-1, 1] if rows == -1 else None
    body.inputs = [1, 0]
    entries = []
    for tensor, name in ((1, "b"), (0, "a")):
        entry = schema.TensorMapT()
        entry.tensorIndex, entry.name = tensor, name
        entries.append(entry)
    model.signatureDefs[0].inputs = entries
    if named:
        first.name, second.name = "other", "names"
    else:
        model.signatureDefs = []
    return pack(model)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("rows", [-1, 1])
def test_several_inputs_are_the_features_of_their_names(tmp_path: Path, named: bool, rows: int) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(difference(named, rows))
    inputs = (Input("a", "float64"), Input("b", "float64"))
    outputs = (Output("value", "float64", (-1,)),)
    runtime = TfliteRuntime(path, Signature("regression", inputs, outputs))
    matrix = np.array([[10.0, 1.0], [20.0, 2.0], [30.0, 3.0]])
    assert runtime.run(Rows(matrix=matrix))["value"].tolist() == [9.0, 18.0, 27.0]
    assert runtime._block_rows == (BLOCK_ROWS if rows == -1 else 1)
    with pytest.raises(Unavailable, match="its inputs are a, b, not the signature's features"):
        TfliteRuntime(path, Signature("regression", (inputs[0], Input("c", "float64")), outputs))
