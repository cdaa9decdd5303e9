"""Parity figures: which answers differ, and by how much."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from registry.errors import Invalid, Refused
from registry.rows import Outputs, Rows
from registry.signature import Input, Output, Signature
from service.compiler.measure import parity
from service.compiler.measure.parity import MAX_SINGLE_ROWS, TOLERANCE, ReferenceBlock

INPUTS = (Input("x", "float64"),)
REGRESSION = Signature("regression", INPUTS, (Output("value", "float64", (-1,)),))
CLASSES = Signature(
    "classification",
    INPUTS,
    (Output("label", "string", (-1,), ("a", "b")), Output("probabilities", "float64", (-1, 2), ("a", "b"))),
)
ROWS = {"random": Rows(matrix=np.linspace(100, 200, 50).reshape(-1, 1))}


def double(rows: Rows) -> Outputs:
    assert rows.matrix is not None
    return {"value": rows.matrix[:, 0] * 2}


def classify(rows: Rows) -> Outputs:
    assert rows.matrix is not None
    probability = (rows.matrix[:, 0] - 100) / 100
    return {
        "label": np.where(probability > 0.5, "b", "a").astype(object),
        "probabilities": np.column_stack([1 - probability, probability]),
    }


def test_the_same_function_is_within_the_bounds() -> None:
    figures = parity.compare(parity.reference(double, ROWS), double, REGRESSION)
    assert figures.within
    assert figures.rows == {"random": 50}
    assert figures.largest_difference == 0


@pytest.mark.parametrize(("factor", "within"), [(1 + 1e-8, True), (1 + 1e-4, False)])
def test_differences_of_numbers_are_relative(factor: float, within: bool) -> None:
    figures = parity.compare(
        parity.reference(double, ROWS), lambda rows: {"value": double(rows)["value"] * factor}, REGRESSION
    )
    assert figures.within is within
    assert figures.largest_difference == pytest.approx(factor - 1, rel=0.5)


def test_a_single_different_label_is_outside_the_bounds() -> None:
    def one_wrong_label(rows: Rows) -> Outputs:
        answered = classify(rows)
        answered["label"][7] = "b"
        return answered

    figures = parity.compare(parity.reference(classify, ROWS), one_wrong_label, CLASSES)
    assert figures.label_mismatches == 1
    assert not figures.within


def test_nan_equals_nan_only() -> None:
    def with_nan(rows: Rows) -> Outputs:
        value = double(rows)["value"]
        value[3] = np.nan
        return {"value": value}

    blocks = parity.reference(with_nan, ROWS)
    assert parity.compare(blocks, with_nan, REGRESSION).within
    assert parity.compare(blocks, double, REGRESSION).beyond == 1


def test_a_candidate_that_raises_is_outside_the_bounds() -> None:
    def broken(rows: Rows) -> Outputs:
        raise ValueError("no such operator")

    figures = parity.compare(parity.reference(double, ROWS), broken, REGRESSION)
    assert not figures.within
    assert figures.error is not None
    assert "no such operator" in figures.error


def test_rows_that_the_reference_rejects_are_left_out() -> None:
    def limited(rows: Rows) -> Outputs:
        assert rows.matrix is not None
        if (rows.matrix < 150).any():
            raise ValueError("too small")
        return double(rows)

    blocks = parity.reference(limited, ROWS)
    assert [b.kind for b in blocks] == ["random"]
    assert 0 < len(blocks[0].rows) < 50


def block(kind: str, **answers: Any) -> ReferenceBlock:
    arrays = {name: np.asarray(a) for name, a in answers.items()}
    return ReferenceBlock(kind, Rows(matrix=np.zeros((len(next(iter(arrays.values()))), 1))), arrays)


def returning(**answers: Any) -> parity.AnswerRows:
    return lambda rows: {name: np.asarray(a) for name, a in answers.items()}


def compared(expected: list[float], actual: list[float], scale: float = 1.0) -> parity.ParityFigures:
    blocks = [block("random", value=expected)]
    return parity.compare(blocks, returning(value=actual), REGRESSION, scales={"value": scale})


def test_a_difference_equal_to_the_tolerance_is_within_it() -> None:
    power = 2.0**-20  # differences of powers of two are exact
    blocks = [block("random", value=[1.0])]
    for factor, within in ((1.0, True), (1.0 + 2.0**-20, False)):
        actual = returning(value=[1.0 + power * factor])
        figures = parity.compare(blocks, actual, REGRESSION, tolerance=power, scales={"value": 1.0})
        assert (figures.within, figures.beyond) == (within, int(not within))


def test_differences_are_relative_to_the_larger_of_the_number_and_the_usual_size() -> None:
    assert compared([100.0], [101.0], scale=10.0).largest_difference == 0.01
    assert compared([1.0], [2.0], scale=10.0).largest_difference == 0.1
    assert compared([0.0], [0.25], scale=0.0).largest_difference == 0.25  # without a size: absolute
    assert compared([0.5], [0.75], scale=0.125).largest_difference == 0.5
    assert compared([-100.0], [-101.0], scale=10.0).largest_difference == 0.01


def test_every_number_beyond_the_tolerance_is_counted_and_the_largest_is_reported() -> None:
    figures = compared([1.0, 1.0, 1.0, np.nan, np.inf], [1.0, 1.5, 3.0, 7.0, np.inf])
    assert (figures.beyond, figures.broken, figures.largest_difference) == (3, 1, 2.0)
    assert compared([np.inf], [-np.inf]).broken == 1
    assert compared([1.0], [np.inf]).broken == 1
    assert compared([np.nan], [np.nan]).beyond == 0


def test_the_figures_of_all_blocks_are_added_and_the_worst_kind_is_named() -> None:
    blocks = [
        block("example", value=[1.0, 2.0]),
        block("random", value=[1.0, 2.0, 3.0]),
        block("wide", value=[1.0, 2.0, 3.0]),
    ]
    wrong = {2: [1.5, 2.0], 3: [9.0, 2.0, 9.0]}
    figures = parity.compare(blocks, lambda rows: {"value": np.array(wrong[len(rows)])}, REGRESSION)
    assert figures.rows == {"example": 2, "random": 3, "wide": 3}
    assert (figures.beyond, figures.worst) == (5, "random")  # the first of two equally bad kinds
    assert not figures.within
    usual = 9.0 / 5  # of the example and random rows
    assert figures.largest_difference == pytest.approx(8.0 / usual)


def test_labels_are_counted_one_by_one() -> None:
    labels, probabilities = np.array(["a", "b", "a"], dtype=object), np.full((3, 2), 0.5)
    blocks = [block("random", label=labels, probabilities=probabilities)]
    actual = returning(label=np.array(["b", "b", "b"], dtype=object), probabilities=probabilities)
    figures = parity.compare(blocks, actual, CLASSES)
    assert (figures.label_mismatches, figures.beyond, figures.worst) == (2, 0, "random")


def test_probabilities_are_compared_absolutely() -> None:
    labels = np.array(["a"], dtype=object)
    blocks = [block("random", label=labels, probabilities=[[0.001, 0.999]])]
    actual = returning(label=labels, probabilities=[[0.0015, 0.999]])
    figures = parity.compare(blocks, actual, CLASSES)
    assert figures.largest_difference == pytest.approx(0.0005)


def test_answers_of_another_shape_are_an_error_and_not_within_the_bounds() -> None:
    figures = compared([1.0, 2.0], [1.0])
    assert figures.error == "value has the shape (1,) instead of (2,)"
    assert (figures.within, figures.worst) == (False, "random")


def test_the_usual_size_is_the_mean_magnitude_of_finite_example_and_random_answers() -> None:
    blocks = [
        block("example", value=[1.0, -3.0, np.nan]),
        block("random", value=[np.inf, 8.0]),
        block("wide", value=[1e9]),
    ]
    assert parity.output_scales(blocks, REGRESSION)["value"] == 4.0
    assert parity.output_scales(blocks[2:], REGRESSION)["value"] == 0.0
    assert parity.output_scales([block("random", value=[4.0])], REGRESSION)["value"] == 4.0
    assert parity.output_scales([block("example", value=[np.nan])], REGRESSION)["value"] == 0.0
    targets = Signature("regression", INPUTS, (Output("values", "float64", (-1, 2)),))
    of_targets = parity.output_scales([block("example", values=[[1.0, 10.0], [3.0, 30.0]])], targets)
    assert of_targets["values"].tolist() == [2.0, 20.0]
    scales = parity.output_scales([block("example", label=["a"], probabilities=[[0.5, 0.5]])], CLASSES)
    assert scales == {"label": 0.0, "probabilities": 1.0}


@pytest.mark.parametrize(("size", "single"), [(63, 63), (64, 64), (65, 64), (1000, 64)])
def test_up_to_64_rows_of_a_block_are_tried_one_by_one(size: int, single: int) -> None:
    calls: list[list[float]] = []

    def odd_only(rows: Rows) -> Outputs:
        assert rows.matrix is not None
        calls.append(rows.matrix[:, 0].tolist())
        if len(rows) > single or (rows.matrix % 2 == 0).any():
            raise ValueError("even")
        return double(rows)

    rows = Rows(matrix=np.arange(float(size)).reshape(-1, 1))
    (accepted,) = parity.reference(odd_only, {"random": rows})
    tried = [c[0] for c in calls[1:-1]]
    assert len(tried) == single == min(size, MAX_SINGLE_ROWS)
    assert (tried[0], tried[-1]) == (0.0, size - 1.0)
    assert accepted.rows.matrix is not None
    assert accepted.rows.matrix[:, 0].tolist() == [n for n in tried if n % 2]
    assert accepted.answers["value"].tolist() == [2 * n for n in tried if n % 2]


def test_blocks_without_rows_or_without_an_accepted_row_are_left_out() -> None:
    def refuses(rows: Rows) -> Outputs:
        raise ValueError("none")

    assert parity.reference(double, {"random": Rows(matrix=np.empty((0, 1)))}) == []
    assert parity.reference(refuses, ROWS) == []


def test_the_report_states_rows_bounds_mismatches_and_the_largest_difference() -> None:
    figures = parity.ParityFigures(rows={"random": 5}, label_mismatches=2, largest_difference=0.5, beyond=3)
    assert parity.report_entry(figures, 0.25) == {
        "bounds": {
            "label_mismatches": 0,
            "probabilities": {"absolute": 0.25},
            "numbers": {"relative": 0.25},
        },
        "rows": {"random": 5},
        "label_mismatches": 2,
        "largest_difference": 0.5,
    }
    assert parity.report_entry(figures)["bounds"]["numbers"] == {"relative": TOLERANCE}


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (Output("label", "float64", (-1,)), True),
        (Output("y1.label", "float64", (-1,)), True),
        (Output("cluster", "int64", (-1,)), True),
        (Output("value", "int64", (-1,)), True),
        (Output("value", "float32", (-1,)), False),
        (Output("label.value", "float64", (-1,)), False),
    ],
)
def test_labels_and_integers_are_equal_or_not(output: Output, expected: bool) -> None:
    assert parity.is_label(output) is expected


class Fixed:
    def __init__(self, answers: Outputs | None) -> None:
        self.answers = answers

    def run(self, rows: Rows) -> Outputs:
        if self.answers is None:
            raise Invalid("bad rows")
        return self.answers


def test_a_graph_must_return_one_answer_per_row() -> None:
    rows = Rows(matrix=np.zeros((2, 1)))
    answers = {"value": np.zeros(2)}
    assert parity.run_checked(Fixed(answers), rows, made_up=False) is answers
    for wrong in (np.zeros(1), np.zeros(3), np.array(0.0)):
        with pytest.raises(Refused, match="one answer per row"):
            parity.run_checked(Fixed({"value": wrong}), rows, made_up=False)
    with pytest.raises(Refused, match=r"fails on 2 rows: it refuses row 0 .*\(bad rows\)"):
        parity.run_checked(Fixed(None), rows, made_up=False)


def test_the_worst_kind_is_the_one_with_the_most_faults_if_there_are_any() -> None:
    assert compared([1.0, 2.0], [1.0, 2.0]).worst is None
    assert compared([1.0, 2.0], [1.0, 3.0]).worst == "random"
