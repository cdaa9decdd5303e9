"""CSV bodies: accepted cells, and the fault of each rejected one."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from registry.errors import FieldError, Invalid
from registry.signature import Input, Output, Signature
from registry.text_tables import MISSING_WORDS
from service.runtime.codec import MAX_INSTANCES, Codec
from service.runtime.codec.csv import csv_value, decode_csv

VALUE = (Output("value", "float64", (-1,)),)


def codec(*inputs: Input) -> Codec:
    return Codec(Signature("regression", inputs, VALUE))


AGE = Input("age", "float64")
MIXED = codec(
    Input("age", "float64", nullable=True),
    Input("visits", "int64"),
    Input("home town", "string", nullable=True),
    Input("member", "bool"),
    Input("score", "float32"),
    Input("note", "string"),
)


def csv_faults(decoder: Codec, text: str | bytes) -> tuple[FieldError, ...]:
    with pytest.raises(Invalid) as caught:
        decoder.decode_csv(text.encode() if isinstance(text, str) else text)
    assert caught.value.errors
    return caught.value.errors


def csv_fault(decoder: Codec, text: str | bytes) -> FieldError:
    (only,) = csv_faults(decoder, text)
    return only


def test_csv_columns_are_matched_by_name_and_read_by_the_signatures_dtypes() -> None:
    text = (
        "﻿note,home town,age,visits,member,score\r\n"
        '"two\r\nlines","Ørsta, by the sea",1.5,39.0,TRUE,0.1\r\n'
        ',,,-9223372036854775808,0,"1"\r\n'
        "\r\n"
        '"say ""hi""",NaN,NaN,9223372036854775807,1,.5\r\n'
    )
    rows = MIXED.decode_csv(text.encode())
    assert rows.columns is not None
    assert [c.dtype for c in rows.columns] == [np.float64, np.int64, object, np.bool_, np.float32, object]
    age, visits, town, member, score, note = (c.tolist() for c in rows.columns)
    assert age[0] == 1.5
    assert np.isnan(age[1:]).all()
    assert visits == [39, -(2**63), 2**63 - 1]
    assert town == ["Ørsta, by the sea", None, "NaN"]
    assert member == [True, False, True]
    assert score == [float(np.float32(0.1)), 1, 0.5]
    assert note == ["two\r\nlines", "", 'say "hi"']


@pytest.mark.parametrize("text", ["inf", "-Infinity", "+INF"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
@pytest.mark.parametrize("nullable", [True, False])
def test_infinity_is_refused_in_csv(text: str, dtype: Any, nullable: bool) -> None:
    fault = csv_fault(codec(Input("x", dtype, nullable=nullable), AGE), f"x,age\n1,1\n{text},1\n")
    assert (fault.instance, fault.field) == (1, "x")
    assert "Infinity, outside the range of" in fault.message


@pytest.mark.parametrize("text", ["", "nan", "NaN", " "])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
def test_nan_and_the_empty_cell_are_null_in_csv(text: str, dtype: Any) -> None:
    mixed_codec = codec(Input("x", dtype, nullable=True), AGE)
    rows = mixed_codec.decode_csv(f"x,age\n{text},1\n".encode())
    assert rows.matrix is not None
    assert np.isnan(rows.matrix[0, 0])
    field_error = csv_fault(codec(Input("x", dtype), AGE), f"x,age\n1,1\n{text},1\n")
    assert (field_error.instance, field_error.field) == (1, "x")


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ("float64", "abc"),
        ("float64", "1_000"),
        ("float64", "\uff11"),
        ("float64", "0x10"),
        ("float64", "nan(1)"),
        ("float64", "NAN()"),
        ("float64", "-nan(x)"),
        ("float64", "infinit"),
        ("float64", "inf(1)"),
        ("float64", "+"),
        ("float64", "."),
        ("float64", "e5"),
        ("float64", "1e"),
        ("float64", "--1"),
        ("float64", "1 2"),
        ("float64", "-1e309"),
        ("float64", "1" * 400),
        ("float64", "-" + "1" * 399),
        ("float32", "3.4028235677973366e+38"),
        ("float32", "nan(1)"),
        ("int64", "nan(1)"),
        ("int64", "9007199254740992"),
        ("int64", "-9007199254740992"),
        ("int64", "9007199254740992.0"),
        ("int64", "-9223372036854775808"),
        ("float64", "1e400"),
        ("float64", "1" + "0" * 5000),
        ("float64", "true"),
        ("float32", "1e39"),
        ("int64", "39.5"),
        ("int64", "9223372036854775808"),
        ("int64", "1_0"),
        ("bool", "yes"),
        ("bool", "2"),
    ],
)
@pytest.mark.parametrize("nullable", [True, False])
def test_csv_cells_of_another_type_are_rejected_with_their_place(
    dtype: Any, text: str, nullable: bool
) -> None:
    field_error = csv_fault(codec(Input("x", dtype, nullable=nullable)), f"x\n1\n{text}\n")
    assert (field_error.instance, field_error.field) == (1, "x")
    assert field_error.expected


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("age,visits\n1,2\n", "visits", "not a feature of this model"),
        ("ages\n1\n", "ages", 'did you mean "age"?'),
        ("age,age\n1,2\n", "age", "occurs 2 times"),
        ("", "instances", "is empty"),
        ("age\n", "instances", "no rows"),
        ("age\n1,2\n", None, "the row has 2 cells, the header has 1"),
        ('age\n"1\n', None, "cannot be read"),
        (b"age\n\xff\n", None, "not UTF-8"),
        ("age\n" + "1\n" * (MAX_INSTANCES + 1), "instances", "more than 10000 rows"),
        ("age\n" + "\n" * 1_000_000, "instances", "more than 10000 rows"),
    ],
)
def test_a_malformed_csv_table_is_rejected_with_the_reason(
    text: str | bytes, field: str | None, message: str
) -> None:
    field_error = csv_faults(codec(AGE), text)[0]
    assert field_error.field == field
    assert message in field_error.message


def test_csv_faults_are_in_the_order_of_the_rows() -> None:
    errors = csv_faults(codec(AGE, Input("n", "int64")), "n,age\n1,x\ny,1\nz,w\n")
    assert [(f.instance, f.field) for f in errors] == [(0, "age"), (1, "n"), (2, "age"), (2, "n")]


def test_closed_categories_apply_to_csv() -> None:
    closed = codec(
        Input("c", "string", categories=("red", "blue"), closed=True),
        Input("k", "int64", categories=(1, 2), closed=True),
    )
    assert len(closed.decode_csv(b"c,k\nred,1\n")) == 1
    assert [(f.instance, f.field) for f in csv_faults(closed, "c,k\nred,1\ngreen,3\n")] == [
        (1, "c"),
        (1, "k"),
    ]


def test_the_codec_and_csv_do_not_import_pyarrow() -> None:
    program = """
import sys
from registry.signature import Input, Output, Signature
from registry.text_tables import MISSING_WORDS
from service.runtime.codec import Codec
codec = Codec(Signature("regression", (Input("x", "float64"),), (Output("value", "float64", (-1,)),)))
codec.decode_csv(b"x\\n1\\n")
codec.decode_json(b'{"instances":[{"x":1}]}')
sys.exit("pyarrow" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    "text", ["9007199254740991", "-9007199254740991", "9007199254740991.0", "9.007199254740991e15"]
)
@pytest.mark.parametrize("nullable", [True, False])
def test_the_largest_safe_integer_is_accepted_in_csv(text: str, nullable: bool) -> None:
    rows = codec(Input("x", "int64", nullable=nullable)).decode_csv(f"x\n{text}\n".encode())
    assert rows.matrix is not None
    assert abs(rows.matrix[0, 0]) == 2**53 - 1


@pytest.mark.parametrize(
    "texts",
    [
        ["9007199254740993", "-9007199254740993"],  # their float64 is a neighbouring integer
        ["-9223372036854775808", "9223372036854775807"],
        ["9007199254740993", "-9223372036854775808.0"],
    ],
)
def test_an_int64_beside_text_keeps_every_digit_in_csv(texts: list[str]) -> None:
    with_text = codec(Input("n", "int64"), Input("s", "string"))
    rows = with_text.decode_csv(("n,s\n" + "".join(f"{t},x\n" for t in texts)).encode())
    assert rows.columns is not None
    assert rows.columns[0].tolist() == [int(t.removesuffix(".0")) for t in texts]


def test_an_int64_beside_text_has_the_bounds_of_int64_in_csv() -> None:
    with_text = codec(Input("n", "int64"), Input("s", "string"))
    for beyond in ("9223372036854775808", "-9223372036854775809", "9223372036854775807.0"):
        fault = csv_fault(with_text, f"n,s\n1,x\n{beyond},y\n")
        assert (fault.instance, fault.field) == (1, "n")


def test_the_largest_floats_are_accepted_in_csv() -> None:
    both = codec(Input("d", "float64"), Input("f", "float32"))
    rows = both.decode_csv(
        b"d,f\n1.7976931348623157e308,3.4028234663852886e+38\n-1.7976931348623157e308,-3.4028234663852886e+38\n"
    )
    assert rows.matrix is not None
    assert rows.matrix[0].tolist() == [1.7976931348623157e308, 3.4028234663852886e38]
    assert rows.matrix[1].tolist() == (-rows.matrix[0]).tolist()


@pytest.mark.parametrize("digits", [308, 309])
def test_integers_of_many_digits_are_floats_up_to_the_largest_one(digits: int) -> None:
    body = f"x\n{'0' * (399 - digits)}{'1' * digits}\n".encode()
    rows = codec(Input("x", "float64")).decode_csv(body)
    assert rows.matrix is not None
    assert rows.matrix[0, 0] == float("1" * digits)


@pytest.mark.parametrize("rows", [1, MAX_INSTANCES])
def test_one_to_ten_thousand_csv_rows_are_accepted(rows: int) -> None:
    assert len(codec(AGE).decode_csv(b"age\n" + b"1\n" * rows)) == rows


def test_csv_rows_and_blank_lines_are_counted_up_to_their_limits() -> None:
    columns = codec(AGE).columns
    assert len(decode_csv(b"age\n" + b"1\n" * 3, columns, 3)) == 3
    with pytest.raises(Invalid, match="more than 3 rows"):
        decode_csv(b"age\n" + b"1\n" * 4, columns, 3)
    assert len(decode_csv(b"age\n" + b"\n" * 7 + b"1\n", columns, 3)) == 1  # nine lines
    with pytest.raises(Invalid, match="more than 3 rows"):
        decode_csv(b"age\n" + b"\n" * 8 + b"1\n", columns, 3)


def test_a_row_with_one_cell_fewer_or_more_is_a_fault_of_its_row() -> None:
    two = codec(AGE, Input("n", "int64"))
    errors = csv_faults(two, "age,n\n1,2\n1\n3,4\n1,2,3\n")
    assert [(f.instance, f.message) for f in errors] == [
        (1, "the row has 1 cells, the header has 2"),
        (3, "the row has 3 cells, the header has 2"),
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1" * 399, int("1" * 399)), ("1" * 400, math.inf), ("12", 12), ("1.0", 1.0), ("+7", 7), ("7e0", 7.0)],
)
def test_a_cell_of_digits_is_an_integer_below_400_characters(text: str, value: float) -> None:
    read = csv_value(text, codec(AGE).columns[0])
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize("word", MISSING_WORDS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "bool"])
def test_a_missing_word_is_null_in_a_column_of_numbers_or_booleans(dtype: Any, word: str) -> None:
    text = f"x,age\n{word},1\n1, {word} \n"
    nullable = codec(Input("x", dtype, nullable=True), Input("age", "float64", nullable=True))
    assert np.array_equal(
        nullable.decode_csv(text.encode()).matrix, [[np.nan, 1], [1, np.nan]], equal_nan=True
    )
    assert (
        "is null, and the model takes no missing values here"
        in csv_fault(codec(Input("x", dtype), Input("age", "float64", nullable=True)), text).message
    )


@pytest.mark.parametrize("nullable", [True, False])
@pytest.mark.parametrize("word", MISSING_WORDS[1:])
def test_a_missing_word_is_text_in_a_column_of_text(word: str, nullable: bool) -> None:
    rows = codec(Input("x", "string", nullable=nullable)).decode_csv(f"x\n{word}\n".encode())
    assert rows.columns is not None
    assert rows.columns[0].tolist() == [word]


def test_an_empty_cell_is_refused_where_the_model_distinguishes_it_from_a_missing_value() -> None:
    town = Input("town", "string", nullable=True, categories=("", "Bern"))
    fault = csv_fault(codec(town, Input("age", "float64")), "town,age\nBern,1\n,2\n")
    assert (fault.instance, fault.field) == (1, "town")
    assert "is an empty cell: the model distinguishes the empty text" in fault.message
