"""Rows are answered alone, again, in another order and among others with the same answers."""

from __future__ import annotations

import numpy as np
import pytest

from registry.errors import Refused
from registry.rows import Outputs, Rows
from registry.signature import Input, Output, Signature
from service.compiler.measure.parity import AnswerRows
from service.compiler.measure.row_independence import find_dependence, require_independent_rows

INPUTS = (Input("x", "float64"),)
REGRESSION = Signature("regression", INPUTS, (Output("value", "float64", (-1,)),))
CLASSES = Signature(
    "classification",
    INPUTS,
    (Output("label", "string", (-1,), ("a", "b")), Output("probabilities", "float64", (-1, 2), ("a", "b"))),
)
OUTLIERS = Signature("outlier", INPUTS, (Output("label", "int64", (-1,)), Output("score", "float64", (-1,))))
ROWS = Rows(matrix=np.linspace(1, 20, 50).reshape(-1, 1))


def column(rows: Rows) -> np.ndarray:
    assert rows.matrix is not None
    return rows.matrix[:, 0]


def kind(answer: AnswerRows, signature: Signature = REGRESSION) -> str | None:
    dependence = find_dependence(answer, ROWS, signature)
    return None if dependence is None else dependence.kind


def test_answers_of_the_rows_themselves_are_independent() -> None:
    assert kind(lambda rows: {"value": column(rows) * 2}) is None


def test_random_answers_differ_when_sent_again() -> None:
    random = np.random.default_rng()
    assert kind(lambda rows: {"value": column(rows) + random.random(len(rows))}) == "twice"


def test_a_state_that_is_kept_between_calls_is_found() -> None:
    calls: list[int] = []

    def counting(rows: Rows) -> Outputs:
        calls.append(1)
        return {"value": column(rows) + len(calls)}

    assert kind(counting) == "twice"


def test_a_running_sum_depends_on_the_order() -> None:
    assert kind(lambda rows: {"value": np.cumsum(column(rows))}) == "order"


@pytest.mark.parametrize("statistic", [np.mean, np.max, np.std])
def test_a_statistic_of_the_block_is_found_in_single_rows(statistic: np.ufunc) -> None:
    assert kind(lambda rows: {"value": column(rows) - statistic(column(rows))}) == "alone"


def test_a_row_that_fails_alone_is_a_dependence() -> None:
    def needs_two(rows: Rows) -> Outputs:
        if len(rows) < 2:
            raise ValueError("at least two rows are required")
        return {"value": column(rows)}

    with pytest.raises(Refused, match=r"fails when one of its rows is sent alone.*two rows are required"):
        require_independent_rows(needs_two, ROWS, REGRESSION, "the model")


def test_the_reason_names_the_output_and_the_size_of_the_difference() -> None:
    def centred(rows: Rows) -> Outputs:
        return {"value": column(rows) - column(rows).mean()}

    with pytest.raises(Refused, match=r"the model answers a row differently when it is sent alone.*value"):
        require_independent_rows(centred, ROWS, REGRESSION, "the model")


def test_float_rounding_between_blocks_is_no_dependence() -> None:
    assert kind(lambda rows: {"value": column(rows) * (1 + len(rows) * 1e-12)}) is None


def test_labels_may_flip_where_probabilities_tie() -> None:
    def tied(rows: Rows) -> Outputs:
        noise = np.full(len(rows), 1e-12 * (len(rows) - 10))
        probabilities = np.column_stack([0.5 - noise, 0.5 + noise])
        return {
            "label": np.array(["a", "b"], dtype=object)[probabilities.argmax(axis=1)],
            "probabilities": probabilities,
        }

    assert kind(tied, CLASSES) is None


def test_labels_may_flip_where_the_score_is_zero() -> None:
    def at_the_border(rows: Rows) -> Outputs:
        score = np.where(column(rows) < 10, 1e-12 * (len(rows) - 10), column(rows))
        return {"label": np.where(score > 0, 1, -1), "score": score}

    assert kind(at_the_border, OUTLIERS) is None


def test_labels_that_flip_without_a_tie_are_a_dependence() -> None:
    def by_size(rows: Rows) -> Outputs:
        return {
            "label": np.full(len(rows), "a" if len(rows) > 1 else "b", dtype=object),
            "probabilities": np.tile([0.7, 0.3], (len(rows), 1)),
        }

    assert kind(by_size, CLASSES) == "alone"


@pytest.mark.parametrize("seeded", [True, False])
def test_labels_drawn_by_chance_are_a_dependence_though_their_probabilities_tie(seeded: bool) -> None:
    def guess(rows: Rows) -> Outputs:
        random = np.random.default_rng(0 if seeded else None)
        labels = np.array(["a", "b"], dtype=object)[random.integers(0, 2, len(rows))]
        return {"label": labels, "probabilities": np.full((len(rows), 2), 0.5)}

    assert kind(guess, CLASSES) == ("order" if seeded else "twice")
