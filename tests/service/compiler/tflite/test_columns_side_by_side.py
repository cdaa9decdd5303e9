"""Columns of several parts side by side: which part a column belongs to, and the steps on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from registry.rows import Array, Rows
from registry.signature import Input, Output, Signature
from service.compiler.tflite.graph_columns import GraphColumns, RawColumns, side_by_side, to_tensor
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.quantize import _calibration_batches
from service.compiler.tflite.writer import GraphTensor
from service.runtime.column_steps import ColumnStep, apply_steps
from service.runtime.tflite_runtime import TfliteRuntime

ROWS = np.array([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0], [np.nan, 0.0, -5.0]])


def computed(folder: Path, graph: Graph, columns: GraphColumns) -> Array:
    value = graph.reshape(to_tensor(graph, columns), (-1, columns.width))
    file = folder / "model.tflite"
    file.write_bytes(graph.finish({"vector": value}, {}))
    inputs = tuple(Input(n, "float64") for n in "abc")
    signature = Signature("transform", inputs, (Output("vector", "float64", (-1, columns.width)),))
    return TfliteRuntime(file, signature).run(Rows(matrix=ROWS))["vector"]


def parts() -> tuple[Graph, GraphColumns, Array]:
    """Raw columns 2 and 0, then the computed tensor [a + 1, b + 1, c + 1], and what they hold."""
    graph = Graph(3)
    columns = side_by_side(
        [GraphColumns((RawColumns(np.array([2, 0])),)), GraphColumns((graph.add(graph.input, 1.0),))]
    )
    return graph, columns, np.column_stack([ROWS[:, [2, 0]], ROWS + 1])


def test_all_columns_in_order_are_the_same_columns() -> None:
    graph, columns, _ = parts()
    assert columns.width == 5
    assert columns.take(graph, np.arange(5)) is columns
    assert columns.take(graph, np.arange(4)) is not columns


@pytest.mark.parametrize(
    ("chosen", "count"),
    [([1, 2], 2), ([0, 1], 1), ([2, 4], 1), ([4, 0, 3], 3), ([1, 0, 4, 4, 2], 2), ([2], 1), ([], 0)],
)
def test_a_selection_keeps_the_order_and_joins_neighbours_of_one_part(
    tmp_path: Path, chosen: list[int], count: int
) -> None:
    graph, columns, expected = parts()
    taken = columns.take(graph, np.array(chosen, dtype=np.int64))
    assert (taken.width, len(taken.parts)) == (len(chosen), count)
    if chosen:
        np.testing.assert_allclose(computed(tmp_path, graph, taken), expected[:, chosen], rtol=1e-6)


def test_a_step_has_a_number_for_each_column_of_each_part(tmp_path: Path) -> None:
    graph, columns, expected = parts()
    steps = (
        ColumnStep("fill", np.array([7.0, 8.0, 9.0, 10.0, 11.0])),
        ColumnStep("subtract", np.array([1.0, 2.0, 3.0, 4.0, 5.0])),
        ColumnStep("multiply", np.array([2.0, 1.0, 0.5, 4.0, 1.0])),
        ColumnStep("maximum", np.array([-1.0, 0.0, -100.0, 3.0, 0.0])),
        ColumnStep("divide", np.array([2.0, 4.0, 8.0, 1.0, 0.5])),
        ColumnStep("add", np.array([0.0, 1.0, 0.0, -1.0, 2.0])),
        ColumnStep("minimum", np.array([50.0, 60.0, 0.25, 1e9, 1e9])),
    )
    for step in steps:
        columns = columns.apply(graph, step)
    raw, tensor = columns.parts
    assert isinstance(raw, RawColumns)
    assert isinstance(tensor, GraphTensor)
    assert [s.numbers.tolist() for s in raw.steps] == [s.numbers[:2].tolist() for s in steps]
    np.testing.assert_allclose(computed(tmp_path, graph, columns), apply_steps(steps, expected), rtol=1e-6)


def test_results_of_steps_have_the_dtype_of_the_rows() -> None:
    columns = RawColumns(np.array([0]), (ColumnStep("add", np.array([1e-9])),))
    single = columns.evaluate(np.array([1.0], dtype=np.float32))
    assert (str(single.dtype), single.tolist()) == ("float32", [1.0])
    assert columns.evaluate(np.array([1.0])).tolist() == [1.000000001]


def test_a_large_mean_is_subtracted_before_the_multiplication(tmp_path: Path) -> None:
    graph = Graph(3)
    columns = GraphColumns((RawColumns(np.array([0, 1, 2])),))
    columns = columns.apply(graph, ColumnStep("subtract", np.array([0.0, 16777216.0, 0.0])))
    columns = columns.apply(graph, ColumnStep("divide", np.array([1.0, 3.0, 0.5])))
    global_rows = ROWS.copy()
    value = computed(tmp_path, graph, columns)
    np.testing.assert_allclose(value[:2, 2], global_rows[:2, 2] * 2)
    np.testing.assert_allclose(value[:2, 1], (global_rows[:2, 1] - 16777216.0) / 3, rtol=1e-7)


@pytest.mark.parametrize(
    ("count", "limit", "numbers", "expected"),
    [(9, 10, 100, 9), (10, 10, 100, 10), (11, 10, 100, 10), (11, 10, 27, 9), (11, 10, 26, 8), (11, 10, 1, 1)],
)
def test_calibration_takes_rows_up_to_both_limits(
    monkeypatch: pytest.MonkeyPatch, count: int, limit: int, numbers: int, expected: int
) -> None:
    monkeypatch.setattr("service.compiler.tflite.quantize.MAX_CALIBRATION_ROWS", limit)
    monkeypatch.setattr("service.compiler.tflite.quantize.MAX_CALIBRATION_NUMBERS", numbers)
    graph = Graph(3)
    content = graph.finish({"vector": graph.add(graph.input, 1.0)}, {})
    rows = Rows(matrix=np.arange(count * 3.0).reshape(count, 3))
    (batch,) = _calibration_batches(content, rows)
    assert batch["input"].shape == (expected, 3)
    assert batch["input"][0].tolist() == [0.0, 1.0, 2.0]
    if expected > 1:
        assert rows.matrix is not None
        assert batch["input"][-1].tolist() == rows.matrix[-1].tolist()
