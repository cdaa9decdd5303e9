"""Parity figures: which answers differ, and by how much."""

from __future__ import annotations

import numpy as np
import pytest

from registry.rows import Outputs, Rows
from registry.signature import Input, Output, Signature
from service.compiler.measure import parity

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
