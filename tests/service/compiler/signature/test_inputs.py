"""A signature's inputs from the columns of an example."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from registry.errors import Refused
from registry.rows import Rows
from registry.signature import MAX_SAFE_INTEGER, Input, Signature
from service.compiler.example import ExampleTable
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.inputs import (
    MAX_CATEGORIES,
    describe_input,
    example_rows,
    pack_rows,
    with_categories,
    with_value,
)


def table(values: list[Any], kind: pa.DataType | None = None) -> ExampleTable:
    return ExampleTable({"a": pa.array(values, kind)})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.0, -1.5, None], Input("a", "float64", nullable=True, minimum=-1.5, maximum=2.0, example=2.0)),
        ([None, 3, 1], Input("a", "int64", nullable=True, minimum=1.0, maximum=3.0, example=3)),
        ([np.inf, 1.0, -np.inf], Input("a", "float64", minimum=1.0, maximum=1.0)),
        ([np.inf, -np.inf], Input("a", "float64")),
        ([0.0], Input("a", "float64", minimum=0.0, maximum=0.0, example=0.0)),
        ([True, False], Input("a", "bool", example=True)),
        (["x", "y"], Input("a", "string", example="x")),
    ],
)
def test_a_feature_has_the_range_and_the_first_value_of_its_column(
    values: list[Any], expected: Input
) -> None:
    assert describe_input("a", table(values), None) == expected


def test_a_column_without_values_has_no_range_and_no_example_value() -> None:
    described = describe_input("a", table([None, None], pa.float64()), None)
    assert described == Input("a", "float64", nullable=True)
    assert describe_input("a", None, None) == Input("a", "float64")
    assert describe_input("a", None, "int64") == Input("a", "int64")
    given = describe_input("a", table([1, 2]), "float32")
    assert given == Input("a", "float32", minimum=1.0, maximum=2.0, example=1.0)


@pytest.mark.parametrize(
    ("count", "listed"), [(1, True), (MAX_CATEGORIES, True), (MAX_CATEGORIES + 1, False)]
)
def test_up_to_a_hundred_distinct_texts_are_categories(count: int, listed: bool) -> None:
    texts = [f"{n:03}" for n in range(count)]
    (feature,) = with_categories((Input("a", "string"),), {}, table([*texts, texts[0]]))
    assert feature.categories == (tuple(texts) if listed else None)


def test_texts_that_are_all_different_are_no_categories() -> None:
    feature = Input("a", "string")
    assert with_categories((feature,), {}, table(["x", "y"])) == (feature,)
    assert with_categories((feature,), {}, table(["x", "y", None]))[0].categories == ("x", "y")
    assert with_categories((feature,), {}, None) == (feature,)
    assert with_categories((Input("a", "int64"),), {}, table([1, 1])) == (Input("a", "int64"),)


def test_an_encoders_categories_come_before_those_of_the_example() -> None:
    (flag,) = with_categories((Input("a", "float64"),), {"a": (False, True)}, None)
    assert (flag.dtype, flag.categories) == ("bool", (False, True))
    (kept,) = with_categories((Input("a", "string"),), {"a": ("p",)}, table(["x", "x"]))
    assert (kept.dtype, kept.categories) == ("string", ("p",))
    (codes,) = with_categories((Input("a", "int64"),), {"a": (1, 2)}, None)
    assert (codes.dtype, codes.categories) == ("int64", (1, 2))


@pytest.mark.parametrize("number", [MAX_SAFE_INTEGER, -MAX_SAFE_INTEGER])
def test_integers_up_to_2_to_the_53_are_exact_in_a_matrix(number: int) -> None:
    inputs = (Input("a", "int64"),)
    rows = example_rows(inputs, table([number]))
    assert rows.matrix is not None
    assert rows.matrix.tolist() == [[float(number)]]
    beyond = number + (1 if number > 0 else -1)
    with pytest.raises(Refused, match=f'"a" holds {beyond}'):
        example_rows(inputs, table([number, beyond]))
    columns = ExampleTable({"a": pa.array([beyond]), "b": pa.array(["text"])})
    mixed = example_rows((*inputs, Input("b", "string")), columns)  # an integer column of its own
    assert mixed.columns is not None
    assert mixed.columns[0].tolist() == [beyond]
    with pytest.raises(Refused, match=f'"a" holds {beyond}'):
        example_rows((Input("a", "int64", nullable=True), Input("b", "string")), columns)


def test_rows_are_in_the_order_of_the_signature() -> None:
    sample = ExampleTable({"a": pa.array([1.0, None]), "b": pa.array([True, False]), "c": pa.array([7, 8])})
    rows = example_rows((Input("c", "int64"), Input("a", "float64", nullable=True)), sample)
    assert rows.matrix is not None
    np.testing.assert_array_equal(rows.matrix, [[7.0, 1.0], [8.0, np.nan]])
    assert pack_rows((Input("b", "bool"),), [np.array([True, False])]).matrix is not None
    assert pack_rows((Input("b", "string"),), [np.array(["x"], dtype=object)]).columns is not None


def test_one_value_of_a_row_is_replaced_in_a_copy() -> None:
    inputs = (Input("a", "float64"), Input("b", "float64"))
    row = Rows(matrix=np.array([[1.0, 2.0]]))
    assert with_value(row, inputs, "b", 5.0).matrix.tolist() == [[1.0, 5.0]]  # type: ignore[union-attr]
    missing = with_value(row, inputs, "a", None).matrix
    assert missing is not None
    assert np.isnan(missing).tolist() == [[True, False]]
    assert row.matrix is not None
    assert row.matrix.tolist() == [[1.0, 2.0]]
    mixed = (Input("s", "string"), Input("n", "int64"))
    columns = Rows(columns=(np.array(["x"], dtype=object), np.array([3])))
    for name, value, expected in (
        ("s", "y", [["y"], [3]]),
        ("s", None, [[None], [3]]),
        ("n", 9, [["x"], [9]]),
    ):
        changed = with_value(columns, mixed, name, value).columns
        assert changed is not None
        assert [c.tolist() for c in changed] == expected
    nan = with_value(columns, mixed, "n", None).columns
    assert nan is not None
    assert np.isnan(nan[1]).all()


def test_a_whole_signature_with_enforced_bounds_can_be_passed_back() -> None:
    limited = Input("a", "int64", minimum=0, maximum=255, enforced=True)
    given = Signature("regression", (limited,), ()).to_json()
    assert Corrections.read(given).apply((limited,)) == (limited,)
