"""How far the answers of two versions agree."""

from __future__ import annotations

import numpy as np
import pytest

from registry.errors import Invalid
from registry.rows import Outputs
from registry.signature import Output, Signature
from service.runtime.agreement import compare, other_columns


def outputs(**arrays: object) -> Outputs:
    return {name: np.array(values) for name, values in arrays.items()}


def test_labels_decide_and_probabilities_are_measured() -> None:
    expected = outputs(label=["a", "b", "a"], probabilities=[[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    actual = outputs(label=["a", "b", "b"], probabilities=[[0.8, 0.2], [0.4, 0.6], [0.4, 0.6]])
    result = compare([expected], [actual])
    assert (result.rows, result.agreed) == (3, 2)
    assert (result.difference_sum, result.largest_difference) == pytest.approx((0.4, 0.3))


def test_several_calls_are_compared_at_once() -> None:
    answers = [outputs(cluster=[1, 2]), outputs(cluster=[3])]
    assert compare(answers, [outputs(cluster=[1, 2]), outputs(cluster=[4])])[:2] == (3, 2)


def test_numbers_without_labels_agree_within_the_tolerance() -> None:
    expected = outputs(value=[1.0, 1e6, np.nan, np.nan, np.inf, 0.0])
    actual = outputs(value=[1.0 + 5e-7, 1e6 + 2, np.nan, 1.0, np.inf, 0.0])
    result = compare([expected], [actual])
    assert (result.rows, result.agreed, result.largest_difference) == (6, 4, 1.0)


def test_every_label_and_every_target_of_a_row_counts() -> None:
    expected = outputs(**{"y0.label": [1, 1], "y1.label": ["a", "b"]})
    actual = outputs(**{"y0.label": [1, 1], "y1.label": ["a", "a"]})
    assert compare([expected], [actual]).agreed == 1
    assert compare([outputs(value=[[1.0, 2.0]])], [outputs(value=[[1.0, 2.5]])]).agreed == 0


def test_a_float_label_is_a_label() -> None:
    assert compare([outputs(label=[1.0, 2.0])], [outputs(label=[1.0, 2.0000001])]).agreed == 1


def test_more_classes_leave_the_labels_comparable() -> None:
    expected = outputs(label=["a"], probabilities=[[0.9, 0.1]])
    actual = outputs(label=["a"], probabilities=[[0.8, 0.1, 0.1]])
    assert compare([expected], [actual]) == (1, 1, 0.0, 0.0)


def signature(name: str, classes: tuple[str, ...] | None) -> Signature:
    label = Output("label", "string", (-1,), classes=classes)
    return Signature("classification", (), (label, Output(name, "float64", (-1, 2), classes=classes)))


def test_numbers_of_other_classes_are_not_compared() -> None:
    expected = outputs(label=["a"], probabilities=[[0.9, 0.1]])
    actual = outputs(label=["a"], probabilities=[[0.1, 0.9]])
    first, second = signature("probabilities", ("a", "b")), signature("probabilities", ("c", "a"))
    assert other_columns(first, first) == set()
    assert other_columns(first, second) == {"probabilities"}
    assert compare([expected], [actual], other_columns(first, second)) == (1, 1, 0.0, 0.0)
    values = outputs(values=[[1.0, 2.0]])
    with pytest.raises(Invalid, match="the columns of values are other ones"):
        compare([values], [values], {"values"})


def test_other_outputs_are_refused() -> None:
    with pytest.raises(Invalid, match="the outputs are value, those of the version are label"):
        compare([outputs(label=["a"])], [outputs(value=[1.0])])
    with pytest.raises(Invalid, match=r"value has the shape \(2,\), that of the version has \(\)"):
        compare([outputs(value=[1.0])], [outputs(value=[[1.0, 2.0]])])
