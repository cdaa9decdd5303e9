"""Large CSV bodies: Arrow returns the rows and the faults of the definition, cell by cell."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.errors import Invalid
from registry.rows import Rows
from registry.signature import Input, Output, Signature
from service.runtime.codec import Codec
from service.runtime.codec import csv as codec_csv
from service.runtime.codec.columns import columns_of
from service.runtime.codec.csv import decode_cells
from service.runtime.codec.csv_bulk import decode_bulk

VALUE = (Output("value", "float64", (-1,)),)
INPUTS = (
    Input("f", "float64"),
    Input("n", "float32", nullable=True),
    Input("i", "int64"),
    Input("b", "bool", nullable=True),
    Input("s", "string"),
    Input("c", "string", nullable=True, categories=("a", "b"), closed=True),
)
COLUMNS = columns_of(Signature("regression", INPUTS, VALUE))
NUMBERS = columns_of(Signature("regression", INPUTS[:4], VALUE))
HEADER = [i.name for i in INPUTS]
GOOD = ["1.5", "", "7", "true", "é, x", "a"]
MAX_ROWS = 9


def outcome(decode: Any, body: bytes, columns: Any = COLUMNS, max_rows: int = MAX_ROWS) -> Any:
    """Return the decoded values, or the faults."""
    try:
        rows: Rows | None = decode(body, columns, max_rows)
    except Invalid as error:
        return str(error), error.errors
    if rows is None:
        return None
    arrays = rows.columns if rows.matrix is None else rows.matrix.T
    assert arrays is not None
    return [(a.dtype, repr(a.tolist())) for a in arrays]


def table(rows: list[list[str]], header: list[str] = HEADER, eol: str = "\r\n") -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator=eol).writerows([header, *rows])
    return text.getvalue().encode()


CELLS = st.sampled_from(
    ["", " ", "0", "-1", "1.5", ".5", "1e3", " 7 ", "1_0", "0x10", "nan", "-NaN", "nan(1)", "inf", "1e999",
     "1e39", "-Infinity", "9007199254740993", "9223372036854775808", "true", "FALSE", "NA", " NA ", "null",
     "#N/A", "a", "b", "é", "\u0661", "\u00a05", "\x0c5", "--1", "1,5", '"', 'x"y', '""', "x\ny", "\r\n",
     "a\rb", "00012", "1" * 400, "\0"]
)  # fmt: skip
ROW = st.lists(CELLS, min_size=6, max_size=6) | st.just(GOOD) | st.lists(CELLS, min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=11), eol=st.sampled_from(["\n", "\r\n", "\r"]))
def test_tables_have_the_rows_and_faults_of_the_definition(rows: list[list[str]], eol: str) -> None:
    body = table(rows, eol=eol)
    bulk = outcome(decode_bulk, body)
    assert bulk is None or bulk == outcome(decode_cells, body)


PIECES = st.sampled_from(
    ['"', '""', ",", "\n", "\r\n", "\r", "1", "x", "NA", '",', ',"', "\n\n", "f", "é", " "]
)


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(PIECES, max_size=20),
    start=st.sampled_from(["f,s\n", "\n\r\nf,s\r\n", "\ufefff,s\n", "s\r"]),
)
def test_any_text_has_the_rows_and_faults_of_the_definition(pieces: list[str], start: str) -> None:
    columns = columns_of(Signature("regression", (INPUTS[0], INPUTS[4]), VALUE))
    body = (start + "".join(pieces)).encode()
    bulk = outcome(decode_bulk, body, columns)
    assert bulk is None or bulk == outcome(decode_cells, body, columns)


@pytest.mark.parametrize(
    "body",
    [
        table([GOOD] * 9),
        table([GOOD] * 10),  # too many rows
        table([["1", "2", "3", "1", "x", "z"], GOOD, ["x", "", "1.5", "maybe", "", "a"]]),
        table([GOOD, GOOD[:5], [*GOOD, "7"]]),
        table([GOOD], header=["f", "n", "i", "b", "s", "d"]),
        table([GOOD], header=["f", "f", "i", "b", "s", "c"]),
        table([["1"], GOOD] * 4, header=["f", "n", "i", "b", "x", "y"]),
        b"\xef\xbb\xbf" + table([GOOD]),
        b'"f","n","i","b","s","c"\n1,,3,1,"a ""b""\n c",a\n',
    ],
    ids=str,
)
def test_a_body_is_decoded_by_arrow_with_the_outcome_of_the_definition(body: bytes) -> None:
    bulk = outcome(decode_bulk, body)
    assert bulk is not None
    assert bulk == outcome(decode_cells, body)


@pytest.mark.parametrize(
    "body",
    [
        table([GOOD]).decode().encode("latin-1"),
        b'f,n,i,b,s,c\n1,,3,1,x"y,a\n',
        b'f,n,i,b,s,c\n1,,3,1,"x"y,a\n',
        b'f,n,i,b,s,c\n1,,3,1,"x,a\n',
        b"f,n,i,b,s,c\n",
        b"f,n,i,b,s,c",
        b"",
        table([["1", "", "1", "1", "x" * 131_073, "a"]]),
        table([["1", "", "1", "1", "\0", "a"]]),
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_body_that_parsers_may_divide_differently_is_left_to_the_definition(body: bytes) -> None:
    assert outcome(decode_bulk, body) is None


@pytest.mark.parametrize("bad_rows", [[], [0], [17, 18, 300], [*range(0, 400, 3)]], ids=len)
def test_invalid_cells_among_many_rows_have_the_faults_of_the_definition(bad_rows: list[int]) -> None:
    rows = [list(GOOD) for _ in range(401)]
    rows[40][2] = "\u00a07"  # valid, and only the definition can read it
    for position, row in enumerate(bad_rows):
        rows[row][position % 6] = ["x", "x", "1.5", "maybe", "", "d"][position % 6]
    body = table(rows)
    assert outcome(decode_bulk, body, max_rows=401) == outcome(decode_cells, body, max_rows=401)


def test_many_wrong_rows_give_the_first_faults() -> None:
    body = table([["1"]] * 150)
    message, errors = outcome(decode_bulk, body)
    assert "the row has 1 cells, the header has 6" in message
    assert [e.instance for e in errors] == list(range(100))


def test_large_bodies_are_decoded_by_arrow(monkeypatch: pytest.MonkeyPatch) -> None:
    features = tuple(Input(f"x{i}", "float64") for i in range(100))
    codec = Codec(Signature("regression", features, VALUE))
    matrix = np.random.default_rng(0).normal(size=(60, 100))
    body = table([[repr(v) for v in row] for row in matrix.tolist()], header=[i.name for i in features])
    assert len(body) > codec_csv.BULK_BYTES
    monkeypatch.setattr(codec_csv, "decode_cells", None)
    rows = codec.decode_csv(body)
    assert rows.matrix is not None
    assert np.array_equal(rows.matrix, matrix)
