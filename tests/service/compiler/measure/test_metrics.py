"""Accuracy and R2, recomputed here on the rows that have a true value."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from registry.signature import Input, Output, Signature
from service.compiler.measure.metrics import measure

INPUTS = (Input("x", "float64"),)
NAMED = Signature("classification", INPUTS, (Output("label", "string", (-1,), ("a", "b")),))
NUMBERED = Signature("classification", INPUTS, (Output("label", "int64", (-1,), (0, 1)),))
VALUE = Signature("regression", INPUTS, (Output("value", "float64", (-1,)),))


def labels(*values: str) -> dict[str, np.ndarray]:
    return {"label": np.array(values, dtype=object)}


def test_accuracy_counts_the_rows_with_a_true_value_only() -> None:
    answered = labels("a", "b", "a", "b", "a")
    truth = pa.array(["a", None, "b", "b", "a"])
    assert measure(NAMED, answered, truth) == {"accuracy": 0.75}


def test_r2_counts_the_rows_with_a_true_value_only() -> None:
    value = np.array([1.0, 50.0, 2.5, 3.0])
    truth = pa.array([1.0, None, 2.0, 4.0])
    true, given = np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.5, 3.0])
    expected = 1 - ((true - given) ** 2).sum() / ((true - true.mean()) ** 2).sum()
    assert measure(VALUE, {"value": value}, truth)["r2"] == pytest.approx(expected, rel=1e-12)


def test_r2_needs_two_true_values() -> None:
    value = np.array([1.0, 2.0, 3.0])
    assert measure(VALUE, {"value": value}, pa.array([1.0, None, 3.0])) == {"r2": 1.0}
    with pytest.raises(ValueError, match="at least two rows"):
        measure(VALUE, {"value": value}, pa.array([1.0, None, None]))


def test_a_target_without_values_is_empty() -> None:
    with pytest.raises(ValueError, match="target column is empty"):
        measure(NAMED, labels("a"), pa.array([None], pa.string()))
    assert measure(NAMED, labels("a"), pa.array(["b"])) == {"accuracy": 0.0}


@pytest.mark.parametrize(
    "truth", [pa.array([0, 1, 1]), pa.array([0.0, 1.0, 1.0]), pa.array([False, True, True])]
)
def test_numbers_are_compared_in_the_dtype_of_the_labels(truth: pa.Array) -> None:
    assert measure(NUMBERED, {"label": np.array([0, 1, 0])}, truth) == pytest.approx({"accuracy": 2 / 3})


def test_a_target_of_another_type_than_the_answers_is_named() -> None:
    with pytest.raises(ValueError, match="holds int64, the model's labels are string"):
        measure(NAMED, labels("a", "b"), pa.array([0, 1]))
    with pytest.raises(ValueError, match="holds string, the model's labels are int64"):
        measure(NUMBERED, {"label": np.array([0, 1])}, pa.array(["a", "b"]))
    with pytest.raises(ValueError, match="holds string, the model returns numbers"):
        measure(VALUE, {"value": np.array([0.0, 1.0])}, pa.array(["a", "b"]))


def test_other_tasks_have_no_metric() -> None:
    several = Signature("regression", INPUTS, (Output("values", "float64", (-1, 2)),))
    assert measure(several, {"values": np.zeros((2, 2))}, pa.array([1.0, 2.0])) == {}
    clusters = Signature("clustering", INPUTS, (Output("cluster", "int64", (-1,)),))
    assert measure(clusters, {"cluster": np.zeros(2)}, pa.array([1, 2])) == {}
    outputs = (Output("y0.label", "int64", (-1,), (0, 1)), Output("y1.label", "int64", (-1,), (0, 1)))
    two = Signature("classification", INPUTS, outputs)
    assert measure(two, {"y0.label": np.zeros(2), "y1.label": np.zeros(2)}, pa.array([1, 0])) == {}
