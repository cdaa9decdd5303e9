"""Arrow columns to checked rows at the bounds of int64 and of the floats that hold it, and around faults."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from registry.signature import MAX_SAFE_INTEGER, Input
from service.formats import cells
from service.formats.cells import MIN_HALVED, CellFaults, CheckedRows, check_batch, check_missing
from service.runtime.codec.arrow import arrow_value
from service.runtime.codec.columns import FLOAT32_MAX, INT64_MAX, Column, rows_of
from service.runtime.codec.csv import csv_value
from service.runtime.codec.csv_bulk import is_exact
from tests.service.formats.read_all import COLOUR, FLAG, WORD_COLUMN, A, B

WIDE = Column(Input("n", "int64"))
SAFE = Column(Input("n", "int64"), MAX_SAFE_INTEGER)
SINGLE = Column(Input("x", "float32"))

BELOW_2_63 = math.nextafter(2.0**63, 0)


def checked(column: Column, data: Any, read_cell: cells.ReadCell = arrow_value) -> CheckedRows:
    return check_batch([column], pa.record_batch([data], names=[column.name]), read_cell)


def with_word(column: Column, data: Any) -> CheckedRows:
    """Check the column next to a text column: the rows are then arrays, in which int64 keeps its digits."""
    batch = pa.record_batch([data, pa.array(["w"] * len(data))], names=[column.name, "word"])
    return check_batch([column, WORD_COLUMN], batch, arrow_value)


def values(result: CheckedRows) -> list[Any]:
    rows = result.rows
    listed: list[Any] = (rows.matrix[:, 0] if rows.matrix is not None else (rows.columns or ())[0]).tolist()
    return listed


@pytest.mark.parametrize("repeats", [1, MIN_HALVED, MIN_HALVED + 1, 40])
@pytest.mark.parametrize(
    ("column", "data", "faults"),
    [
        (WIDE, pa.array([-(2.0**63), -(2.0**53), 2.0**53, 2.0**53 + 2, BELOW_2_63]), []),
        (WIDE, pa.array([2.0**63, 1.0, -(2.0**63) - 2048]), [0, 2]),
        (WIDE, pa.array([-(2**63), 2**63 - 1, 2**53 + 1]), []),
        (WIDE, pa.array([0, 2**63 - 1, 2**63, 2**64 - 1], pa.uint64()), [2, 3]),
        (SAFE, pa.array([-(2.0**53) + 1, 2.0**53 - 1]), []),
        (SAFE, pa.array([2.0**53, 2.0**53 + 2, -(2.0**53), 2.0**63, 0.5]), [0, 1, 2, 3, 4]),
        (SAFE, pa.array([-(2**53) + 1, 2**53 - 1, 2**53, -(2**53), 2**63 - 1, -(2**63)]), [2, 3, 4, 5]),
        (SAFE, pa.array([2**53 - 1, 2**53, 2**63, 2**64 - 1], pa.uint64()), [1, 2, 3]),
        (SAFE, pa.array([2**31 - 1, -(2**31)], pa.int32()), []),
        (SAFE, pa.array([2**32 - 1], pa.uint32()), []),
        (SAFE, pa.array([2.0**24, 0.5], pa.float32()), [1]),
        (SINGLE, pa.array([FLOAT32_MAX, -FLOAT32_MAX, math.nextafter(FLOAT32_MAX, math.inf), 1e39]), [2, 3]),
        (SINGLE, pa.array([FLOAT32_MAX, math.inf], pa.float32()), [1]),
    ],
    ids=lambda value: value.name if isinstance(value, Column) else None,
)
def test_numbers_are_faults_beyond_the_bound_of_their_column(
    column: Column, data: Any, faults: list[int], repeats: int
) -> None:
    """As a matrix, and beside a text column; in few cells, and in so many that ranges are halved."""
    repeated = pa.concat_arrays([data] * repeats)
    expected = [i for i in range(len(repeated)) if i % len(data) in faults]
    cell_values = repeated.to_pylist()
    for result in (checked(column, repeated), with_word(column, repeated)):
        assert sorted(result.faults) == expected
        for row, value in enumerate(values(result)):
            if row not in result.faults:
                expected_value = np.float32(cell_values[row]) if column is SINGLE else cell_values[row]
                in_matrix = result.rows.matrix is not None
                assert value == (float(expected_value) if in_matrix else expected_value)


def test_int64_keeps_every_digit_beside_a_text_column() -> None:
    numbers = [2**53 + 1, INT64_MAX, -(2**63), -(2**53) - 1]
    assert values(with_word(WIDE, pa.array(numbers))) == numbers
    large = [2**53 + 1, INT64_MAX, 2**63, 2**64 - 1]
    result = with_word(WIDE, pa.array(large, pa.uint64()))
    assert (values(result)[:2], sorted(result.faults)) == (large[:2], [2, 3])


@pytest.mark.parametrize("count", [1, 2, MIN_HALVED, MIN_HALVED + 1, 2 * MIN_HALVED + 1, 100])
@pytest.mark.parametrize("column", [A, COLOUR, FLAG], ids=lambda c: c.name)
def test_an_invalid_cell_is_isolated_at_every_position(column: Column, count: int) -> None:
    good: Any = {"a": "1.5", "colour": "red", "flag": "true"}[column.name]
    for bad in {0, 1, count // 2 - 1, count // 2, count - 1} & set(range(count)):
        data = pa.array([b"x" if i == bad else good.encode() for i in range(count)], pa.binary())
        result = checked(column, data, csv_value)
        assert list(result.faults) == [bad]
        (fault,) = result.faults[bad]
        assert (fault.instance, fault.field) == (bad, column.name)
        assert len(result.rows) == count
        expected = {"a": 1.5, "colour": "red", "flag": True}[column.name]
        assert [v for i, v in enumerate(values(result)) if i != bad] == [expected] * (count - 1)


def test_several_columns_add_their_faults_to_the_same_row() -> None:
    batch = pa.record_batch({"a": [1.0, None, 3.0], "x": [1.0, 1e39, 1e39]})
    result = check_batch([A, SINGLE], batch, arrow_value)
    assert {row: [f.field for f in faults] for row, faults in result.faults.items()} == {
        1: ["a", "x"],
        2: ["x"],
    }


@pytest.mark.parametrize("data", [pa.array([1.0, None, math.nan, 4.0]), pa.array([b"1", b"", b"", b"4"])])
def test_only_missing_cells_are_checked_one_by_one(data: Any) -> None:
    faults: CellFaults = {}
    read_cell = csv_value if pa.types.is_binary(data.type) else arrow_value
    array = check_missing(A, data, read_cell, 10, faults)
    assert array is not None
    assert [array[0], array[3]] == [1, 4]
    assert sorted(faults) == [11, 12]
    assert all("is null" in f.message for row in faults.values() for f in row)


def test_columns_with_other_invalid_cells_or_without_missing_ones_are_halved() -> None:
    faults: CellFaults = {}
    assert check_missing(A, pa.array([1.0, None, math.inf]), arrow_value, 0, faults) is None
    assert check_missing(A, pa.array([1.0, math.inf]), arrow_value, 0, faults) is None
    assert check_missing(B, pa.array([1.0, None]), arrow_value, 0, faults) is None
    assert check_missing(COLOUR, pa.array([b"red", b""]), csv_value, 0, faults) is None
    assert check_missing(FLAG, pa.array([b"true", b""]), csv_value, 0, faults) is None
    assert faults == {}


def parsed(column: Column, numbers: list[float | None]) -> CheckedRows | None:
    """Accept CSV numbers that Arrow has parsed, alone and beside a text column, with the same outcome."""
    alone = pa.record_batch([pa.array(numbers, pa.float64())], names=[column.name])
    words = pa.array([b"w"] * len(numbers))
    beside = pa.record_batch([alone.column(0), words], names=[column.name, "word"])
    first = cells.accept_parsed_csv([column], alone)
    second = cells.accept_parsed_csv([column, WORD_COLUMN], beside)
    assert (first is None) == (second is None)
    return first


@pytest.mark.parametrize(
    ("column", "numbers", "accepted"),
    [
        (WIDE, [2.0**53 - 1, -(2.0**53) + 1], True),
        (A, [2.0**53, 2.0**63, 1.7976931348623157e308], True),
        (A, [math.inf], False),
        (B, [math.inf], False),
        (B, [math.nan, None], True),
        (A, [None], False),
        (WIDE, [1.5], False),
    ],
)
def test_numbers_that_arrow_parsed_are_accepted_if_they_are_exact(
    column: Column, numbers: list[float | None], accepted: bool
) -> None:
    assert (parsed(column, numbers) is not None) == accepted


@pytest.mark.parametrize("number", [2.0**53, -(2.0**53), 2.0**53 + 2])
def test_integers_of_sixteen_digits_and_more_are_read_as_text(number: float) -> None:
    """From 2**53 on the float may stand for a neighbouring integer."""
    beside = pa.record_batch([pa.array([number]), pa.array([b"w"])], names=["n", "word"])
    assert cells.accept_parsed_csv([WIDE, WORD_COLUMN], beside) is None
    assert not is_exact(WIDE, np.array([number]))
    assert is_exact(A, np.array([number]))
    assert is_exact(WIDE, np.array([2.0**53 - 1, 1 - 2.0**53]))


def test_wide_integers_in_csv_keep_every_digit() -> None:
    texts = ["9007199254740991", "9007199254740992", "9007199254740993", "-9223372036854775808",
             "9223372036854775807"]  # fmt: skip
    batch = pa.record_batch(
        [pa.array([t.encode() for t in texts]), pa.array([b"w"] * len(texts))], names=["n", "word"]
    )
    result = check_batch([WIDE, WORD_COLUMN], batch, csv_value)
    assert (values(result), result.faults) == ([int(t) for t in texts], {})
    (fault,) = checked(WIDE, pa.array([b"9223372036854775808"]), csv_value).faults[0]
    assert "outside the range of int64" in fault.message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), (" ", None), ("\t", None), ("nan", math.nan), ("-NaN", math.nan), ("+nan", math.nan),
        ("inf", math.inf), ("-Infinity", -math.inf), ("1e308", 1e308), ("+5", 5.0), (" 7\t", 7.0),
        (".5", 0.5), ("5.", 5.0), ("1E3", 1000.0), ("-0", -0.0), ("007", 7.0),
    ],
)  # fmt: skip
def test_csv_cells_that_are_numbers_or_missing(text: str, value: float | None) -> None:
    data = pa.array([text.encode()], pa.binary())
    nullable = checked(B, data, csv_value)
    is_infinite = value is not None and math.isinf(value)
    assert (0 in nullable.faults) == is_infinite
    if not is_infinite:
        np.testing.assert_array_equal(values(nullable), [math.nan if value is None else value])
    is_finite = value is not None and math.isfinite(value)
    assert (0 in checked(A, data, csv_value).faults) != is_finite


@pytest.mark.parametrize(
    "text",
    ["nan(1)", "NaN()", "-nan(0x1)", "nan(", "nanx", "1e400", "-1e309", "0x10", "0X1p3", "1_000", "+", "-",
     ".", "e5", "1e", "1e+", "--1", "+-1", "1 2", "1,5",
     "infinit", "infx", "inf(1)", "Null", "none", "n/a", "\u0661"],
)  # fmt: skip
@pytest.mark.parametrize("repeats", [1, 20])
def test_csv_cells_that_are_not_numbers(text: str, repeats: int) -> None:
    """pyarrow accepts some of them: the whole column is read again, also in nullable columns."""
    data = pa.array([text.encode(), b"1"] * repeats, pa.binary())
    for column in (A, B, SINGLE, Column(Input("n", "int64", nullable=True))):
        assert sorted(checked(column, data, csv_value).faults) == [*range(0, 2 * repeats, 2)]


def test_the_sum_of_a_matrix_may_overflow() -> None:
    largest = 1.7976931348623157e308
    assert cells.finite_columns(np.array([[largest, 1.0], [largest, 2.0]])) == [True, True]
    assert cells.finite_columns(np.array([[largest, math.nan], [-largest, 2.0]])) == [True, False]
    assert cells.finite_columns(np.array([[math.inf, 1.0], [-math.inf, 2.0]])) == [False, True]
    assert values(checked(A, pa.array([largest, largest]))) == [largest, largest]


def test_null_and_unused_entries_of_a_dictionary_are_not_values() -> None:
    entries = pa.DictionaryArray.from_arrays(pa.array([1, None, 1], pa.int8()), pa.array(["green", "red"]))
    result = checked(Column(Input("colour", "string", True, ("red",), True)), entries)
    assert (values(result), result.faults) == (["red", None, "red"], {})
    assert list(checked(COLOUR, entries).faults) == [1]


def test_rows_of_no_cells_are_no_rows() -> None:
    for column, data in ((A, pa.array([], pa.float64())), (COLOUR, pa.array([], pa.string()))):
        result = checked(column, data)
        assert (len(result.rows), result.faults) == (0, {})
    assert len(rows_of([A], [np.empty(0)], 0)) == 0


def test_bytes_that_are_not_utf8_are_faults_of_their_rows() -> None:
    faults: CellFaults = {}
    batch = pa.record_batch(
        [pa.array([b"ok", b"a\xff", b"\xc3\xa4"]), pa.array([b"\xfe", b"x", b""])], names=["id", "t"]
    )
    decoded = cells.decode_columns(batch, faults)
    assert decoded.to_pydict() == {"id": ["ok", "", "\u00e4"], "t": ["", "x", ""]}
    assert {row: [(f.instance, f.field) for f in errors] for row, errors in faults.items()} == {
        1: [(1, "id")],
        0: [(0, "t")],
    }
    assert "at byte 1 of the cell" in faults[1][0].message


@pytest.mark.parametrize(
    "kind", [pa.float64(), pa.float32(), pa.float16(), pa.int64(), pa.int8(), pa.uint64()]
)
def test_closed_categories_and_null_are_checked_in_a_matrix(kind: Any) -> None:
    closed = Column(Input("c", "float64", nullable=True, categories=(1.0, 2.0), closed=True))
    data = pa.array(np.array([1, 3, 2]), mask=np.array([False, False, True])).cast(kind)
    batch = pa.record_batch([data, data.fill_null(data[0])], names=["c", "x"])
    result = check_batch([closed, SINGLE], batch, arrow_value)
    assert list(result.faults) == [1]
    assert result.rows.matrix is not None
    np.testing.assert_array_equal(result.rows.matrix[[0, 2]], [[1, 1], [np.nan, 1]])
    assert result.rows.matrix[1, 1] == 3


@pytest.mark.parametrize("kind", [pa.float64(), pa.int64(), pa.uint64()])
def test_a_float32_feature_is_rounded_to_float32(kind: Any) -> None:
    number = 16_777_217  # the next float32 is 16_777_216
    data = pa.array([number, 3], pa.int64()).cast(kind)
    assert values(checked(SINGLE, data)) == [16_777_216, 3]
    assert values(checked(A, data)) == [number, 3]
