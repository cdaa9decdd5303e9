"""The measure itself: it finds what differs, and says how much."""

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
    chance = (rows.matrix[:, 0] - 100) / 100
    return {
        "label": np.where(chance > 0.5, "b", "a").astype(object),
        "probabilities": np.column_stack([1 - chance, chance]),
    }


def test_the_same_function_is_within_the_bounds() -> None:
    figures = parity.compare(parity.reference(double, ROWS), double, REGRESSION)
    assert figures.within
    assert figures.rows == {"random": 50}
    assert figures.largest_difference == 0


@pytest.mark.parametrize(("factor", "within"), [(1 + 1e-8, True), (1 + 1e-4, False)])
def test_numbers_are_measured_relatively(factor: float, within: bool) -> None:
    figures = parity.compare(
        parity.reference(double, ROWS), lambda rows: {"value": double(rows)["value"] * factor}, REGRESSION
    )
    assert figures.within is within
    assert figures.largest_difference == pytest.approx(factor - 1, rel=0.5)


def test_one_other_label_is_too_many() -> None:
    def almost(rows: Rows) -> Outputs:
        answered = classify(rows)
        answered["label"][7] = "b"
        return answered

    figures = parity.compare(parity.reference(classify, ROWS), almost, CLASSES)
    assert figures.label_mismatches == 1
    assert not figures.within


def test_not_a_number_equals_itself_and_nothing_else() -> None:
    def sometimes(rows: Rows) -> Outputs:
        value = double(rows)["value"]
        value[3] = np.nan
        return {"value": value}

    blocks = parity.reference(sometimes, ROWS)
    assert parity.compare(blocks, sometimes, REGRESSION).within
    assert parity.compare(blocks, double, REGRESSION).beyond == 1


def test_a_candidate_that_raises_is_not_within() -> None:
    def broken(rows: Rows) -> Outputs:
        raise ValueError("no such operator")

    figures = parity.compare(parity.reference(double, ROWS), broken, REGRESSION)
    assert not figures.within
    assert figures.error is not None
    assert "no such operator" in figures.error


def test_rows_that_the_reference_refuses_are_left_out() -> None:
    def picky(rows: Rows) -> Outputs:
        assert rows.matrix is not None
        if (rows.matrix < 150).any():
            raise ValueError("too small")
        return double(rows)

    blocks = parity.reference(picky, ROWS)
    assert [b.kind for b in blocks] == ["random"]
    assert 0 < len(blocks[0].rows) < 50
