"""Readers accept and reject each row as the online codec accepts or rejects it in a request of its own."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.errors import Invalid
from registry.media_types import ARROW, CSV, NDJSON, PARQUET
from registry.rows import Rows
from registry.signature import Input, Output, Signature
from service.formats import text_records
from service.runtime.codec import Codec
from service.runtime.codec.arrow_types import decode, plain_type
from service.runtime.codec.columns import columns_of
from tests.service.formats.read_all import read_all

CATEGORIES: dict[str, tuple[Any, ...]] = {
    "float64": (0.5, 1.0), "float32": (0.1, 1.0), "int64": (1, 2), "bool": (True,), "string": ("a", "é b"),
}  # fmt: skip


@st.composite
def inputs(draw: st.DrawFn, dtypes: list[str] | None = None) -> list[Input]:
    def draw_input(name: str) -> Input:
        dtype = draw(st.sampled_from(dtypes or list(CATEGORIES)))
        closed = draw(st.integers(0, 3)) == 0
        categories = CATEGORIES[dtype] if closed else None
        return Input(name, dtype, nullable=draw(st.booleans()), categories=categories, closed=closed)

    return [draw_input(name) for name in "abc"[: draw(st.integers(1, 3))]]


TEXTS = st.sampled_from(
    ["", " ", "0", "1", "2", "-1", "+3", "1.5", "0.5", "0.1", ".5", "1.", "1e3", "1E-3", " 7 ", "\t8", "1_0",
     "0x10", "nan", "NaN", "-nan", "+nan", "nan(1)", "NAN(x)", "inf", "-Infinity", "+inf", "1e999", "-1e999",
     "1e39", "1e-400", "1e5.5", "9007199254740993", "9223372036854775807", "9223372036854775808",
     "-9223372036854775808", "1" * 400, "true", "TRUE", "False", "no", "a", "é b", "é", "\u0661", "\u00a05",
     "\x0c5", "--1", "1,5", '"', 'x"y', "x\ny", "\r\n", "null", "NULL", "None",
     "n/a", "NA", "N/A", "#N/A", " NA ", "--nan", "1 2", "(", "1-2", "-",
     "0.1000000000000000055511151231257827", "123456789012345678901234567890", "00012", "-.5", ".", "1.2.3",
     "1.7976931348623157e308", "2.2250738585072011e-308", "5e-324", "3.4028235677973366e+38", "-0", "1e"]
) | st.floats().map(repr) | st.integers(-(2**65), 2**65).map(str) | st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), max_size=4
)  # fmt: skip
VALUES = (
    st.none() | st.booleans() | st.floats() | st.floats(width=32) | st.integers(-(2**65), 2**65)
    | st.sampled_from([0, 1, 2, 0.5, 0.1, 1.0, "a", "é b", "", "1", 1e39, 2**63, 10**400, [], {}])
)  # fmt: skip


def row_lists(cells: st.SearchStrategy[str], width: int) -> st.SearchStrategy[list[list[str]]]:
    return st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=20)


quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def signature(features: list[Input]) -> Signature:
    return Signature("regression", tuple(features), (Output("value", "float64", (-1,)),))


def codec(features: list[Input]) -> Codec:
    return Codec(signature(features))


def decode_or_none(decode: Any, body: bytes) -> Rows | None:
    try:
        rows: Rows = decode(body)
    except Invalid:
        return None
    return rows


def check(path: Path, media_type: str, features: list[Input], expected: list[Rows | None]) -> None:
    result = read_all(path, media_type, list(columns_of(signature(features))))
    assert result.length == len(expected)
    assert result.fault_rows == [i for i, rows in enumerate(expected) if rows is None]
    valid = [rows for rows in expected if rows is not None]
    for j in range(len(features)):
        values = [(r.matrix[0, j] if r.matrix is not None else (r.columns or ())[j][0]) for r in valid]
        assert len(values) == len(result.columns[j])
        assert all(a == b or (a != a and b != b) for a, b in zip(values, result.columns[j], strict=True))


@pytest.fixture(params=[None, 16], ids=["one block", "many blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the file in one block, or in many, of which all but the first may use the fast path."""
    if request.param:
        monkeypatch.setattr(text_records, "BLOCK_BYTES", request.param)


@quick
@given(features=inputs(), data=st.data())
def test_csv_rows_agree_with_the_codec(
    blocks: None, tmp_path: Path, features: list[Input], data: st.DataObject
) -> None:
    rows = data.draw(
        st.lists(st.lists(TEXTS, min_size=len(features), max_size=len(features)), min_size=1, max_size=20)
    )

    def table(table_rows: list[list[str]]) -> bytes:
        text = io.StringIO()
        csv.writer(text).writerows([[i.name for i in features], *table_rows])
        return text.getvalue().encode()

    path = tmp_path / "input.csv"
    path.write_bytes(table(rows))
    check(path, CSV, features, [decode_or_none(codec(features).decode_csv, table([row])) for row in rows])


@quick
@given(features=inputs(["float64", "float32", "int64"]), data=st.data())
def test_csv_rows_of_numbers_agree_with_the_codec(
    blocks: None, tmp_path: Path, features: list[Input], data: st.DataObject
) -> None:
    cells = st.decimals(allow_nan=False, allow_infinity=False, places=6).map(str)
    cells |= st.floats(allow_nan=False, allow_infinity=False).map(repr)
    cells |= st.integers(-(2**63), 2**63).map(str)
    rows = data.draw(row_lists(cells, len(features)))

    def table(table_rows: list[list[str]]) -> bytes:
        return "\n".join(",".join(r) for r in [[i.name for i in features], *table_rows]).encode()

    path = tmp_path / "input.csv"
    path.write_bytes(table(rows))
    check(path, CSV, features, [decode_or_none(codec(features).decode_csv, table([row])) for row in rows])


@quick
@given(features=inputs(), data=st.data())
def test_json_lines_agree_with_the_codec(tmp_path: Path, features: list[Input], data: st.DataObject) -> None:
    names = [i.name for i in features]
    rows = data.draw(st.lists(st.dictionaries(st.sampled_from(names), VALUES), min_size=1, max_size=20))
    rows[0] = dict.fromkeys(names) | rows[0]  # the first rows define the columns
    lines = [json.dumps(row) for row in rows]
    path = tmp_path / "input.jsonl"
    path.write_text("\n".join(lines))
    bodies = [b'{"instances": [%s]}' % line.encode() for line in lines]
    check(path, NDJSON, features, [decode_or_none(codec(features).decode_json, body) for body in bodies])


ARROW_TYPES = {
    "float64": [
        pa.float64(),
        pa.float32(),
        pa.float16(),
        pa.int64(),
        pa.uint64(),
        pa.int32(),
        pa.int8(),
        pa.decimal128(22, 2),
        pa.dictionary(pa.int8(), pa.float64()),
        pa.run_end_encoded(pa.int32(), pa.int64()),
    ],
    "string": [
        pa.string(),
        pa.large_string(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.run_end_encoded(pa.int32(), pa.string()),
    ],
    "bool": [pa.bool_()],
}
ARROW_TYPES["float32"] = ARROW_TYPES["int64"] = ARROW_TYPES["float64"]


def arrow_values(kind: Any) -> st.SearchStrategy[Any]:
    kind = plain_type(kind)
    if pa.types.is_decimal(kind):
        return (
            st.none() | st.decimals(-(10**19), 10**19, places=2) | st.sampled_from([Decimal(1), Decimal(2)])
        )
    if pa.types.is_floating(kind):
        edges = [0.0, 1.0, 0.5, 2.0, 7.0] + ([2.0**63, 1e39, 2.0**53 + 2] if kind == pa.float64() else [])
        return st.none() | st.floats(width=kind.bit_width) | st.sampled_from(edges)
    if pa.types.is_integer(kind):
        low = 0 if kind == pa.uint64() else -(2 ** (kind.bit_width - 1))
        high = 2**64 - 1 if kind == pa.uint64() else 2 ** (kind.bit_width - 1) - 1
        return st.none() | st.integers(low, high) | st.sampled_from([0, 1, 2])
    if pa.types.is_boolean(kind):
        return st.none() | st.booleans()
    return st.none() | st.sampled_from(["a", "é b", "", "x"])


@quick
@given(features=inputs(), data=st.data())
@pytest.mark.parametrize("media_type", [PARQUET, ARROW])
def test_typed_rows_agree_with_the_codec(
    tmp_path: Path, media_type: str, features: list[Input], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, 20))
    columns = {}
    for i in features:
        kind = data.draw(st.sampled_from(ARROW_TYPES[i.dtype]))
        values = data.draw(st.lists(arrow_values(kind), min_size=count, max_size=count))
        values = [np.float16(v) if kind == pa.float16() and v is not None else v for v in values]
        columns[i.name] = pa.array(values, kind)
        if media_type == PARQUET and pa.types.is_run_end_encoded(kind):
            columns[i.name] = decode(columns[i.name])
    table = pa.table(columns)
    path = tmp_path / "input"
    if media_type == PARQUET:
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    check(
        path,
        media_type,
        features,
        [decode_or_none(codec(features).decode_arrow, _stream(table.slice(i, 1))) for i in range(count)],
    )


def _stream(table: Any) -> bytes:
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    stream: bytes = out.getvalue().to_pybytes()
    return stream


TOKENS = st.sampled_from(['"', '""', ",", "\n", "\r\n", "\r", "a", "b,", '\n"', '",', '"\n'])


@quick
@given(tokens=st.lists(TOKENS, max_size=30))
def test_blocks_end_where_the_parser_ends_a_row(tokens: list[str]) -> None:
    """The end of a block never divides a record, for any combination of quotes."""
    body = "".join(tokens).encode()
    end = text_records.RecordFormat().last_end(body)
    if end:
        assert sorted(_cells(body[:end]) + _cells(body[end:])) == sorted(_cells(body))


def _cells(body: bytes) -> list[list[str]]:
    """Return all rows that pyarrow parses, including those with another number of cells."""
    rows: list[list[str]] = []

    def keep_text(row: Any) -> str:
        rows.append(row.text)
        return "skip"

    if not body.strip(b"\r\n"):
        return []
    table = pyarrow.csv.read_csv(
        pa.BufferReader(body),
        pyarrow.csv.ReadOptions(column_names=["a", "b"], use_threads=False),
        pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=keep_text),
        pyarrow.csv.ConvertOptions(column_types={"a": pa.string(), "b": pa.string()}, null_values=[]),
    )
    return [*map(str, rows), *(f"{a},{b}" for a, b in zip(*table.to_pydict().values(), strict=True))]
