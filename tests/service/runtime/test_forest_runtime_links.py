"""How the forest runtime turns raw answers into labels and numbers, on tables made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.errors import Invalid
from registry.rows import Array, Outputs, Rows
from registry.signature import Input, Output, Signature
from service.runtime import kernel_table, node_file
from service.runtime.column_steps import ColumnStep, apply_step
from service.runtime.forest_runtime import ForestRuntime
from service.runtime.kernel_code import load_or_compile
from service.runtime.kernel_table import FEW_ROWS
from service.runtime.loading import LoadedModel
from service.runtime.nodes import NodeTable

INPUTS = (Input("a", "float64"),)
VALUE = (Output("value", "float64", (-1,)),)
AT = np.arange(3.0).reshape(-1, 1)  # one row for each of the three leaves


def table(*leaves: list[float], **fields: Any) -> NodeTable:
    """One tree that gives rows 0, 1 and 2 the first, second and third of `leaves`."""
    values = np.array(leaves, dtype=np.float64)
    parts: dict[str, Any] = {
        "feature": np.zeros(5, dtype=np.int32),
        "threshold": np.array([0.5, np.inf, 1.5, np.inf, np.inf]),
        "left": np.array([1, 1, 3, 3, 4], dtype=np.int32),
        "missing_left": np.ones(5, dtype=bool),
        "values": values[[0, 0, 0, 1, 2]] * np.array([[0], [1], [0], [1], [1]]),
        "cover": np.ones(5),
        "root": np.zeros(1, dtype=np.int32),
        "depth": 2,
        "outputs": values.shape[1],
        "link": "identity",
        "base": np.zeros(values.shape[1]),
    }
    return NodeTable(**{**parts, **fields})


def answers(folder: Path, nodes: NodeTable, *outputs: Output, rows: Any = AT, steps: Any = ()) -> Outputs:
    task = "regression" if outputs == VALUE else "classification"
    node_file.save(nodes, folder / "forest.nodes", steps)
    runtime = ForestRuntime(folder / "forest.nodes", Signature(task, INPUTS, outputs), load_or_compile())  # type: ignore[arg-type]
    return runtime.run(Rows(matrix=rows))


def two_classes(dtype: Any = "string", classes: tuple[Any, ...] = ("a", "b")) -> tuple[Output, Output]:
    return Output("label", dtype, (-1,), classes), Output("probabilities", "float64", (-1, 2), classes)


@pytest.mark.parametrize(("inclusive", "labels"), [(True, ["a", "b", "b"]), (False, ["a", "a", "b"])])
@pytest.mark.parametrize("cut", [0.0, 1.5])
def test_a_raw_answer_equal_to_the_cut_is_above_it_where_the_cut_is_inclusive(
    tmp_path: Path, inclusive: bool, labels: list[str], cut: float
) -> None:
    above = float(np.nextafter(cut, np.inf))
    below = float(np.nextafter(cut, -np.inf))
    nodes = table([below], [cut], [above], link="sigmoid", cut=cut, inclusive=inclusive, slope=2.0)
    answered = answers(tmp_path, nodes, *two_classes())
    assert answered["label"].tolist() == labels
    second = 1 / (1 + np.exp(-2.0 * np.array([below, cut, above])))
    np.testing.assert_allclose(answered["probabilities"], np.column_stack([1 - second, second]), rtol=1e-15)


def test_an_outlier_detector_labels_by_its_cut_and_scores_by_its_slope(tmp_path: Path) -> None:
    nodes = table([3.0], [4.0], [8.0], link="isolation", cut=4.0, cut_score=0.75, slope=0.25, inclusive=True)
    outputs = (Output("label", "int64", (-1,)), Output("score", "float64", (-1,)))
    node_file.save(nodes, tmp_path / "forest.nodes")
    answered = ForestRuntime(
        tmp_path / "forest.nodes", Signature("outlier", INPUTS, outputs), load_or_compile()
    ).run(Rows(AT))
    assert answered["label"].tolist() == [-1, 1, 1]
    assert answered["score"].tolist() == [0.75 - 2.0**-0.75, 0.75 - 0.5, 0.75 - 0.25]


def test_the_first_of_equally_large_classes_is_the_label(tmp_path: Path) -> None:
    leaves = [[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]
    fractions = table(*leaves, link="fractions", blocks=(2,))
    answered = answers(tmp_path, fractions, *two_classes("int64", (7, 9)))
    assert answered["label"].tolist() == [7, 9, 7]
    assert answered["label"].dtype == np.int64
    assert answered["probabilities"].tolist() == leaves
    softmax = answers(tmp_path, replace(fractions, link="softmax", slope=3.0), *two_classes())
    assert softmax["label"].tolist() == ["a", "b", "a"]
    powers = np.exp(3.0 * np.array(leaves))
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax["probabilities"], expected, rtol=1e-15)


def test_each_block_of_classes_is_an_output(tmp_path: Path) -> None:
    nodes = table(
        [0.2, 0.8, 1.0, 0.0, 0.0], [0.9, 0.1, 0.0, 0.5, 0.5], [0.5, 0.5, 0.0, 0.1, 0.9], link="fractions"
    )
    outputs = (
        Output("y0.label", "int64", (-1,), (0, 1)),
        Output("y0.probabilities", "float64", (-1, 2), (0, 1)),
        Output("y1.label", "string", (-1,), ("p", "q", "r")),
        Output("y1.probabilities", "float64", (-1, 3), ("p", "q", "r")),
    )
    answered = answers(tmp_path, replace(nodes, blocks=(2, 3)), *outputs)
    assert answered["y0.label"].tolist() == [1, 0, 0]
    assert answered["y1.label"].tolist() == ["p", "q", "r"]
    assert answered["y1.probabilities"].tolist() == [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.1, 0.9]]


def test_values_are_the_raw_answers_or_their_exponentials(tmp_path: Path) -> None:
    nodes = table([0.0], [1.0], [-2.0], base=np.array([0.5]))
    assert answers(tmp_path, nodes, *VALUE)["value"].tolist() == [0.5, 1.5, -1.5]
    powers = answers(tmp_path, replace(nodes, link="exp"), *VALUE)["value"]
    assert powers.tolist() == np.exp([0.5, 1.5, -1.5]).tolist()
    weighted = replace(nodes, weight=np.array([4.0]))
    assert answers(tmp_path, weighted, *VALUE)["value"].tolist() == [0.5, 0.75, 0.0]


def test_rows_with_an_infinite_answer_are_refused_where_the_estimator_refuses_them(tmp_path: Path) -> None:
    nodes = table([0.0], [1000.0], [-2.0], link="exp")
    assert np.isinf(answers(tmp_path, nodes, *VALUE)["value"]).tolist() == [False, True, False]
    signature = Signature("regression", INPUTS, VALUE)
    runtime = ForestRuntime(tmp_path / "forest.nodes", signature, load_or_compile(), requires_finite=True)
    assert runtime.run(Rows(matrix=AT[[0, 2]]))["value"].tolist() == np.exp([0.0, -2.0]).tolist()
    model = LoadedModel("m", 1, "forest", signature, runtime)
    with pytest.raises(Invalid, match=r"^instance 1: the model refuses this row: an answer is not finite"):
        model.run(Rows(matrix=AT))
    model.close()


def test_numbers_beyond_float32_are_refused_where_the_trees_round_to_it(tmp_path: Path) -> None:
    nodes = table([10.0], [20.0], [30.0])
    for beyond in (np.inf, -np.inf, 3.5e38, -1e300):
        rows = np.vstack([AT, [[beyond]]])
        with pytest.raises(Invalid, match=r'^instance 3: "a" is .* beyond the range of float32'):
            answers(tmp_path, nodes, *VALUE, rows=rows)
        exact = answers(tmp_path, replace(nodes, rounded=False), *VALUE, rows=rows)["value"]
        assert exact.tolist() == [10, 20, 30, 30 if beyond > 0 else 10]


def test_the_range_of_float32_is_that_of_the_numbers_after_the_column_steps(tmp_path: Path) -> None:
    steps = (ColumnStep("divide", np.array([1e10])),)
    nodes = table([10.0], [20.0], [30.0])
    assert answers(tmp_path, nodes, *VALUE, rows=np.full((1, 1), 1e40), steps=steps)["value"].tolist() == [30]
    enlarge = (ColumnStep("multiply", np.array([1e10])),)
    with pytest.raises(Invalid, match="beyond the range of float32"):
        answers(tmp_path, nodes, *VALUE, rows=np.full((1, 1), 1e30), steps=enlarge)


def probes(numbers: Array) -> NodeTable:
    """Three trees per column, each with an answer of its own: is it above the number, above the number before
    it, and missing?"""
    trees, below = 3 * len(numbers), np.nextafter(numbers, -np.inf)
    thresholds = np.column_stack([numbers, below, np.full(len(numbers), np.inf)]).ravel()
    node = np.arange(3 * trees).reshape(trees, 3)
    missing_left = np.ones((trees, 3), bool)
    missing_left[2::3, 0] = False
    threshold = np.full((trees, 3), np.inf)
    threshold[:, 0] = np.nan_to_num(thresholds, nan=0.5, posinf=np.inf, neginf=-np.inf)
    feature = np.zeros((trees, 3), np.int32)
    feature[:, 0] = np.repeat(np.arange(len(numbers)), 3)
    return NodeTable(
        feature=feature.ravel(),
        threshold=threshold.ravel(),
        left=np.column_stack([node[:, 1], node[:, 1], node[:, 2]]).astype(np.int32).ravel(),
        missing_left=missing_left.ravel(),
        values=np.tile([[0.0], [1.0], [2.0]], (trees, 1)),
        cover=np.ones(3 * trees),
        root=node[:, 0].astype(np.int32),
        depth=1,
        outputs=trees,
        link="identity",
        base=np.zeros(trees),
        target=np.arange(trees, dtype=np.int32),
        rounded=False,
    )


@pytest.mark.parametrize("operation", ["add", "subtract", "multiply", "divide", "maximum", "minimum", "fill"])
def test_a_compiled_column_step_calculates_as_numpy_does(tmp_path: Path, operation: str) -> None:
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -3.0, 5e-324, 1e308, 0.1]
    values, numbers = map(np.ravel, np.meshgrid(special, special))
    step = ColumnStep(operation, numbers)
    expected = apply_step(step, values)
    nodes = probes(expected)
    node_file.save(nodes, tmp_path / "forest.nodes", (step,))
    names = tuple(f"y{i}" for i in range(nodes.outputs))
    outputs = (Output("values", "float64", (-1, nodes.outputs), names),)
    signature = Signature("regression", INPUTS * len(values), outputs)
    runtime = ForestRuntime(tmp_path / "forest.nodes", signature, load_or_compile())
    for count in (1, FEW_ROWS):
        answered = runtime.run(Rows(matrix=np.tile(values, (count, 1))))["values"]
        assert answered.tolist() == np.tile(nodes.raw(expected[None]), (count, 1)).tolist()


def test_column_steps_come_before_the_trees(tmp_path: Path) -> None:
    steps = (ColumnStep("fill", np.array([2.0])), ColumnStep("subtract", np.array([1.0])))
    rows = np.array([[np.nan], [1.0], [3.0], [1.5], [np.nextafter(1.5, 2.0)]])
    nodes = table([10.0], [20.0], [30.0], rounded=False)
    assert answers(tmp_path, nodes, *VALUE, rows=rows, steps=steps)["value"].tolist() == [20, 10, 30, 10, 20]


@pytest.mark.parametrize("width", [0, 2])
def test_rows_of_another_width_or_form_are_refused(tmp_path: Path, width: int) -> None:
    with pytest.raises(Invalid, match=f"has 1 features, the rows have {width}"):
        answers(tmp_path, table([1.0], [2.0], [3.0]), *VALUE, rows=np.zeros((2, width)))
    with pytest.raises(Invalid, match="has 1 features, the rows have 1"):
        answers(tmp_path, table([1.0], [2.0], [3.0]), *VALUE, rows=np.zeros(1))


def test_the_depths_of_trees_and_of_their_mean_leaves() -> None:
    depth, mean = kernel_table.tree_depths(table([1.0], [2.0], [3.0]))
    assert (depth.tolist(), mean.tolist()) == ([2.0], [5 / 3])


def test_the_size_of_a_table_is_that_of_its_arrays(tmp_path: Path) -> None:
    node_file.save(table([1.0], [2.0], [3.0]), tmp_path / "forest.nodes")
    signature = Signature("regression", INPUTS, VALUE)
    runtime = ForestRuntime(tmp_path / "forest.nodes", signature, load_or_compile())
    per_node = 4 + 4 + 4 + 8  # feature, threshold in float32, left child, one value
    per_tree = 3 * 4  # root, shallow and deep levels
    assert (
        runtime.bytes == 5 * per_node + per_tree + 2 * 8 + kernel_table.RECORD.itemsize
    )  # one base, one block


def test_missing_values_go_right_only_where_the_table_has_such_a_node(tmp_path: Path) -> None:
    rows = np.array([[np.nan], [0.0]])
    nodes = table([10.0], [20.0], [30.0])
    assert answers(tmp_path, nodes, *VALUE, rows=rows)["value"].tolist() == [10, 10]
    right = replace(nodes, missing_left=np.array([False, True, True, True, True]))
    assert answers(tmp_path, right, *VALUE, rows=rows)["value"].tolist() == [20, 10]


def test_a_feature_of_float64_is_compared_in_float64_where_the_table_is_not_rounded(tmp_path: Path) -> None:
    threshold = np.array([0.1, np.inf, 1.5, np.inf, np.inf])
    nodes = table([10.0], [20.0], [30.0], threshold=threshold)
    rows = np.array([[0.1], [np.nextafter(0.1, 1)]])
    assert answers(tmp_path, nodes, *VALUE, rows=rows)["value"].tolist() == [20, 20]  # float32(0.1) > 0.1
    exact = replace(nodes, rounded=False)
    assert answers(tmp_path, exact, *VALUE, rows=rows)["value"].tolist() == [10, 20]
