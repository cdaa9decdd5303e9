"""The rule of one feature at its bounds: the definition, numpy and msgspec accept the same values."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest

from registry.errors import Invalid
from registry.signature import MAX_SAFE_INTEGER, Input, Output, Signature
from service.runtime.codec.columns import (
    FLOAT32_MAX,
    INT64_MAX,
    INT64_MIN,
    MAX_FAULTS,
    MAX_HINTS,
    Column,
    Faults,
    ValueRejected,
    check_names,
    columns_of,
    read_column,
    show,
)

WIDE = Column(Input("n", "int64"))
SAFE = Column(Input("n", "int64"), MAX_SAFE_INTEGER)
NULLABLE = Column(Input("n", "int64", nullable=True), MAX_SAFE_INTEGER)
SINGLE = Column(Input("n", "float32"))
DOUBLE = Column(Input("n", "float64"))


@pytest.mark.parametrize(
    ("dtype", "storage", "nullable_storage"),
    [
        ("float64", "float64", "float64"),
        ("float32", "float32", "float32"),
        ("int64", "int64", "float64"),
        ("bool", "bool", "float64"),
        ("string", "object", "object"),
    ],
)
def test_only_nullable_integers_and_booleans_are_stored_as_float64(
    dtype: Any, storage: str, nullable_storage: str
) -> None:
    assert Column(Input("x", dtype)).storage == np.dtype(storage)
    assert Column(Input("x", dtype, nullable=True)).storage == np.dtype(nullable_storage)


def test_the_advice_shows_an_example_or_the_categories() -> None:
    assert Column(Input("x", "float64")).advice == "send a number"
    assert Column(Input("x", "float64", example=0.0)).advice == "send a number, such as 0.0"
    assert Column(Input("x", "float64", True, example=1.5)).advice == "send a number or null, such as 1.5"
    closed = Input("x", "float64", categories=(0.5,), closed=True, example=0.5)
    assert Column(closed).advice == "send one of 0.5"
    assert Column(Input("x", "float64", categories=(0.5,))).advice == "send a number"


def test_only_closed_categories_of_the_type_of_the_column_are_a_limit() -> None:
    mixed = Column(Input("x", "string", categories=("a", 1, "b"), closed=True))
    assert mixed.closed_categories == frozenset({"a", "b"})
    assert Column(Input("x", "int64", categories=(1, "a", 2), closed=True)).closed_categories == frozenset(
        {1, 2}
    )
    for spec in (Input("x", "string", categories=("a",)), Input("x", "string", closed=True)):
        assert Column(spec).closed_categories is None


@pytest.mark.parametrize("value", [True, "1", None, [1], {}])
def test_values_of_another_type_are_no_numbers(value: object) -> None:
    for column in (WIDE, SINGLE, DOUBLE):
        assert not accepts(column, value)
    assert accepts(NULLABLE, None)


def test_half_of_a_surrogate_pair_is_no_string() -> None:
    text = Column(Input("s", "string"))
    assert accepts(text, "\U0001f600")
    for value in ("\ud83d", "a\udfff", 1, True):
        assert not accepts(text, value)


def accepts(column: Column, value: object) -> bool:
    try:
        return bool(column.check(value) == value)
    except ValueRejected:
        return False


def json_accepts(column: Column, value: float) -> bool:
    try:
        decoded = msgspec.json.decode(json.dumps(value).encode(), type=column.type)
    except msgspec.ValidationError:
        return False
    assert decoded == value
    return True


def numpy_accepts(column: Column, value: float, dtype: str) -> bool:
    """Whether a whole column in numpy is converted; whatever is not converted is read with `check`."""
    array = column.numbers(np.array([value], dtype=dtype))
    assert array is None or array[0] == value
    return array is not None


@pytest.mark.parametrize(
    ("column", "accepted", "rejected"),
    [
        (WIDE, [INT64_MIN, INT64_MIN + 1, -(2**53), 0, 2**53 + 1, INT64_MAX], [INT64_MIN - 1, 2**63]),
        (SAFE, [-(2**53) + 1, 2**53 - 1], [-(2**53), 2**53, 2**53 + 1, INT64_MIN, INT64_MAX, 2**63]),
        (NULLABLE, [-(2**53) + 1, 2**53 - 1], [-(2**53), 2**53, INT64_MIN, INT64_MAX]),
    ],
    ids=["int64", "int64 in a matrix", "nullable int64"],
)
def test_integers_are_accepted_up_to_the_bound(
    column: Column, accepted: list[int], rejected: list[int]
) -> None:
    for value in accepted:
        assert accepts(column, value), value
        assert json_accepts(column, value), value
        assert numpy_accepts(column, value, "int64"), value
        assert value < 0 or numpy_accepts(column, value, "uint64"), value
    for value in rejected:
        assert not accepts(column, value), value
        assert not json_accepts(column, value), value
        if INT64_MIN <= value <= INT64_MAX:
            assert not numpy_accepts(column, value, "int64"), value
        if value >= 0:
            assert not numpy_accepts(column, value, "uint64"), value


BELOW_2_63 = math.nextafter(2.0**63, 0)


@pytest.mark.parametrize(
    ("column", "accepted", "rejected"),
    [
        (WIDE, [-BELOW_2_63, 2.0**53 + 2, BELOW_2_63, -0.0], [2.0**63, -(2.0**63) - 2048, 0.5]),
        (SAFE, [-(2.0**53) + 1, 2.0**53 - 1], [2.0**53, -(2.0**53), 2.0**53 + 2, 2.0**63, 1.5]),
        (NULLABLE, [-(2.0**53) + 1, 2.0**53 - 1], [2.0**53, -(2.0**53), 2.0**53 + 2, 2.0**63, 1.5]),
    ],
    ids=["int64", "int64 in a matrix", "nullable int64"],
)
def test_whole_floats_are_integers_up_to_the_bound(
    column: Column, accepted: list[float], rejected: list[float]
) -> None:
    for value in accepted:
        assert accepts(column, value), value
        assert json_accepts(column, value), value
        assert numpy_accepts(column, value, "float64"), value
    for value in rejected:
        assert not accepts(column, value), value
        assert not json_accepts(column, value), value
        assert not numpy_accepts(column, value, "float64"), value


def test_the_lowest_int64_is_accepted_as_a_float() -> None:
    assert accepts(WIDE, -(2.0**63))
    assert json_accepts(WIDE, -(2.0**63))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_floats_are_accepted_up_to_the_largest_one(sign: float) -> None:
    largest, beyond = sign * FLOAT32_MAX, sign * math.nextafter(FLOAT32_MAX, math.inf)
    assert accepts(SINGLE, largest)
    assert json_accepts(SINGLE, largest)
    assert numpy_accepts(SINGLE, largest, "float64")
    assert not accepts(SINGLE, beyond)
    assert not json_accepts(SINGLE, beyond)
    assert not numpy_accepts(SINGLE, beyond, "float64")
    double = sign * 1.7976931348623157e308
    assert accepts(DOUBLE, double)
    assert numpy_accepts(DOUBLE, double, "float64")
    assert not accepts(DOUBLE, sign * math.inf)
    assert not accepts(DOUBLE, int(sign) * 10**400)


def test_the_message_names_the_bound_that_an_integer_exceeds() -> None:
    for value, message in ((2**63, "outside the range of int64"), (2**53, f"beyond {MAX_SAFE_INTEGER}")):
        with pytest.raises(ValueRejected, match=message):
            SAFE.check(value)
    for value in (-(2**63), 2**63 - 1):
        with pytest.raises(ValueRejected, match=f"beyond {MAX_SAFE_INTEGER}"):
            SAFE.check(value)


def test_only_a_matrix_limits_integers_to_those_of_a_float() -> None:
    value = (Output("value", "float64", (-1,)),)
    number, text = Input("n", "int64"), Input("s", "string")
    assert columns_of(Signature("regression", (number,), value))[0].max_int == MAX_SAFE_INTEGER
    assert columns_of(Signature("regression", (number, text), value))[0].max_int == INT64_MAX
    nullable = Input("n", "int64", nullable=True)
    assert columns_of(Signature("regression", (nullable, text), value))[0].max_int == MAX_SAFE_INTEGER


def test_missing_numbers_become_nan_only_in_nullable_columns() -> None:
    values = np.array([1.0, np.nan])
    assert DOUBLE.numbers(values) is None
    array = NULLABLE.numbers(values)
    assert array is not None
    np.testing.assert_array_equal(array, [1, np.nan])


@pytest.mark.parametrize("column", [DOUBLE, NULLABLE])
def test_infinity_is_not_a_missing_number(column: Column) -> None:
    assert column.numbers(np.array([1.0, np.inf])) is None
    with pytest.raises(ValueRejected, match="is Infinity, outside the range of"):
        column.check(math.inf)


@pytest.mark.parametrize(
    ("dtype", "categories", "inside", "outside"),
    [
        ("int64", (1, 2**53 - 1), [1, 2**53 - 1], [0, 2, 2**53 - 2]),
        ("float64", (0.1, 1.5), [0.1, 1.5], [math.nextafter(0.1, 1), 1.0]),
        (
            "float32",
            (0.1,),
            [0.1, float(np.float32(0.1))],
            [math.nextafter(float(np.float32(0.1)), 1) + 1e-7],
        ),
    ],
)
def test_a_number_next_to_a_closed_category_is_rejected(
    dtype: Any, categories: tuple[Any, ...], inside: list[float], outside: list[float]
) -> None:
    column = Column(Input("c", dtype, categories=categories, closed=True), MAX_SAFE_INTEGER)
    for value in inside:
        assert accepts(column, value)
        assert column.numbers(np.array([value], np.float64)) is not None
    for value in outside:
        assert not accepts(column, value)
        assert column.numbers(np.array([value], np.float64)) is None


@pytest.mark.parametrize(("count", "more"), [(20, False), (21, True)])
def test_the_expected_text_names_twenty_categories(count: int, more: bool) -> None:
    categories = tuple(f"c{i:02}" for i in range(count))
    expected = Column(Input("c", "string", categories=categories, closed=True)).expected
    assert expected.startswith('one of "c00", ')
    assert expected.endswith(', "c19", ...' if more else ', "c19"')
    assert '"c20"' not in expected


def test_a_hundred_faults_are_kept_and_the_next_is_dropped() -> None:
    faults = Faults()
    for number in range(MAX_FAULTS):
        assert not faults.full
        faults.add(f"fault {number}", number, "x")
    assert faults.full
    faults.add("one too many", None, "x")
    assert len(faults) == MAX_FAULTS == 100
    assert faults[-1].message == "fault 99"


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (1, "instance 0: fault 0"),
        (2, "instance 0: fault 0 (and 1 more)"),
        (99, "instance 0: fault 0 (and 98 more)"),
        (100, "instance 0: fault 0 (and at least 99 more)"),
        (101, "instance 0: fault 0 (and at least 99 more)"),
    ],
)
def test_the_message_counts_the_other_faults(count: int, message: str) -> None:
    faults = Faults()
    for number in range(count):
        faults.add(f"fault {number}", number, "x")
    with pytest.raises(Invalid) as caught:
        faults.raise_any()
    assert str(caught.value) == message


def test_similar_names_are_suggested_for_the_first_faults_only() -> None:
    faults = Faults()
    for _ in range(MAX_HINTS + 1):
        faults.add_unknown("is unknown", "visit", ["visits"])
    hints = [fault.message.partition("; ")[2] for fault in faults]
    assert hints == ['did you mean "visits"?'] * 5 + ["leave it out"]


def test_a_column_is_read_until_a_hundred_faults_are_found() -> None:
    read: list[str] = []

    def read_value(value: str, column: Column) -> str:
        read.append(value)
        return value

    faults = Faults()
    assert read_column(DOUBLE, ["x"] * 101, read_value, faults) is None
    assert (len(read), len(faults)) == (100, 100)
    faults, values = Faults(), ["x"] * 99
    assert read_column(DOUBLE, values, read_value, faults) is None
    assert [f.instance for f in faults] == [*range(99)]


def test_a_column_that_occurs_once_is_not_a_fault() -> None:
    faults = Faults()
    check_names(["n"], [DOUBLE], faults)
    assert faults == []
    check_names(["n", "n"], [DOUBLE], faults)
    assert [f.message for f in faults] == ['column "n" occurs 2 times; send it once']


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**200 - 1, str(2**200 - 1)[:57] + "..."),
        (2**200, "an integer of 201 bits"),
        (-(2**200), "an integer of 201 bits"),
        (True, "true"),
        ("x" * 58, '"' + "x" * 58 + '"'),
        ("x" * 59, '"' + "x" * 56 + "..."),
        ("\n" * 29, '"' + "\\n" * 29 + '"'),
    ],
)
def test_values_are_shown_in_sixty_characters(value: object, text: str) -> None:
    assert show(value) == text
    assert len(text) <= 60


ENFORCED = Column(Input("n", "int64", minimum=0, maximum=255, enforced=True), MAX_SAFE_INTEGER)


@pytest.mark.parametrize("value", [0, 255, 255.0, -1, 256, -0.5, 256.0, 2**53, -(2**63), 2**64])
def test_enforced_bounds_limit_integers_on_every_interface(value: float) -> None:
    inside = 0 <= value <= 255
    assert accepts(ENFORCED, value) == inside
    assert json_accepts(ENFORCED, value) == inside
    assert numpy_accepts(ENFORCED, value, "float64") == inside


@pytest.mark.parametrize(
    ("low", "high", "reason"),
    [
        (0, 255, "the model's input holds uint8: 0 to 255"),
        (-128, 127, "the model's input holds int8: -128 to 127"),
        (-(2**31), 2**31 - 1, "the model's input holds int32: -2147483648 to 2147483647"),
        (-(2**24), 2**24, "as float32, which represents integers exactly only from -16777216 to 16777216"),
        (1, 9, "the model's input holds integers from 1 to 9"),
    ],
)
def test_the_message_states_the_enforced_bounds_and_their_reason(low: int, high: int, reason: str) -> None:
    column = Column(Input("n", "int64", minimum=low, maximum=high, enforced=True), MAX_SAFE_INTEGER)
    for value in (low - 1, high + 1, 2**70):
        with pytest.raises(ValueRejected, match=reason):
            column.check(value)


def test_bounds_of_the_example_are_no_limits() -> None:
    assert accepts(Column(Input("n", "int64", minimum=0, maximum=255), MAX_SAFE_INTEGER), 256)
