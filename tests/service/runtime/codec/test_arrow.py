"""Arrow bodies: accepted columns, and the fault of each rejected value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from registry.errors import FieldError, Invalid
from registry.signature import Input, Output, Signature
from service.runtime.codec import MAX_INSTANCES, Codec
from service.runtime.codec import arrow as arrow_codec

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


def stream(table: pa.Table, options: pa.ipc.IpcWriteOptions | None = None, chunk: int | None = None) -> bytes:
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=chunk)
    written: bytes = out.getvalue().to_pybytes()
    return written


def arrow(columns: dict[str, Any]) -> bytes:
    return stream(pa.table(columns))


def arrow_faults(table_codec: Codec, body: bytes) -> tuple[FieldError, ...]:
    with pytest.raises(Invalid) as caught:
        table_codec.decode_arrow(body)
    assert caught.value.errors
    return caught.value.errors


def arrow_fault(table_codec: Codec, body: bytes) -> FieldError:
    (only,) = arrow_faults(table_codec, body)
    return only


def test_arrow_columns_are_read_by_name_with_nulls_over_several_batches() -> None:
    table = pa.table(
        {
            "note": pa.array(["a", "b", ""], pa.large_string()),
            "home town": pa.array(["x", None, "x"]).dictionary_encode(),
            "age": pa.array([1, None, 3], pa.int32()),
            "visits": pa.array([1.0, 2.0, 3.0], pa.float32()),
            "member": pa.array([True, False, True]),
            "score": pa.array([0.1, 0.2, 0.3], pa.float64()),
        }
    )
    rows = MIXED.decode_arrow(stream(table, chunk=2))
    assert rows.columns is not None
    assert [c.dtype for c in rows.columns] == [np.float64, np.int64, object, np.bool_, np.float32, object]
    age, visits, town, member, score, note = (c.tolist() for c in rows.columns)
    assert (age[0], age[2], visits) == (1, 3, [1, 2, 3])
    assert np.isnan(age[1])
    assert town == ["x", None, "x"]
    assert member == [True, False, True]
    assert score == np.array([0.1, 0.2, 0.3], np.float32).tolist()
    assert note == ["a", "b", ""]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
@pytest.mark.parametrize("encoded", [True, False])
def test_every_arrow_string_type_is_accepted(kind: Any, encoded: bool) -> None:
    values = pa.array(["é", None, "é"], kind)
    if encoded:
        values = pa.DictionaryArray.from_arrays([0, None, 0], values[:1])
    rows = codec(Input("s", "string", nullable=True)).decode_arrow(arrow({"s": values}))
    assert rows.columns is not None
    assert rows.columns[0].tolist() == ["é", None, "é"]


@pytest.mark.parametrize(
    "kind",
    [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64(), pa.float16(), pa.float32()],
)
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
@pytest.mark.parametrize("nullable", [True, False])
def test_every_arrow_number_is_widened(kind: Any, dtype: Any, nullable: bool) -> None:
    values = pa.array(np.array([1, 2, 3]), mask=np.array([False, False, nullable])).cast(kind)
    rows = codec(Input("x", dtype, nullable=nullable)).decode_arrow(arrow({"x": values}))
    assert rows.matrix is not None
    assert rows.matrix[:2, 0].tolist() == [1, 2]
    assert np.isnan(rows.matrix[2, 0]) == nullable


@pytest.mark.parametrize(
    ("dtype", "values", "message"),
    [
        ("float64", pa.array([1.0, None]), "takes no missing values"),
        ("float64", pa.array([1.0, np.nan]), "takes no missing values"),
        ("float64", pa.array([1.0, np.inf]), "outside the range"),
        ("int64", pa.array([1.0, 1.5]), "not a whole number"),
        ("int64", pa.array([1, 2**63], pa.uint64()), "outside the range of int64"),
        ("float32", pa.array([1.0, 1e39]), "outside the range of float32"),
        ("string", pa.array(["a", None]), "takes no missing values"),
        ("bool", pa.array([True, None]), "takes no missing values"),
    ],
)
def test_an_arrow_value_out_of_range_is_rejected_with_its_place(
    dtype: Any, values: Any, message: str
) -> None:
    field_error = arrow_fault(codec(Input("x", dtype)), arrow({"x": values}))
    assert (field_error.instance, field_error.field) == (1, "x")
    assert message in field_error.message


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float64", pa.array(["1"])),
        ("float64", pa.array([True])),
        ("int64", pa.array([1], pa.timestamp("us"))),
        ("string", pa.array([b"x"])),
        ("string", pa.array([1])),
        ("bool", pa.array([1])),
        ("float64", pa.array([[1.0]])),
    ],
)
def test_an_arrow_column_of_another_type_is_one_fault(dtype: Any, values: Any) -> None:
    field_error = arrow_fault(codec(Input("x", dtype)), arrow({"x": values}))
    assert (field_error.instance, field_error.field, field_error.expected) == (None, "x", dtype)
    assert str(values.type) in field_error.message


def test_infinity_is_refused_in_a_nullable_arrow_column() -> None:
    nullable = codec(Input("x", "float64", nullable=True))
    fault = arrow_fault(nullable, arrow({"x": [1.0, np.nan, np.inf]}))
    assert (fault.instance, fault.field) == (2, "x")
    assert "Infinity, outside the range of float64" in fault.message


def test_an_arrow_column_of_type_null_is_accepted_in_a_nullable_column() -> None:
    rows = codec(Input("x", "float64", nullable=True)).decode_arrow(arrow({"x": pa.nulls(2)}))
    assert rows.matrix is not None
    assert np.isnan(rows.matrix).all()
    assert len(arrow_faults(codec(AGE), arrow({"age": pa.nulls(2)}))) == 2


def test_arrow_columns_are_matched_by_name() -> None:
    missing = arrow_faults(codec(AGE), arrow({"ages": [1.0]}))
    assert [(f.instance, f.field) for f in missing] == [(None, "ages"), (None, "age")]
    repeated_column = stream(pa.table([pa.array([1.0]), pa.array([2.0])], names=["age", "age"]))
    assert "2 times" in arrow_fault(codec(AGE), repeated_column).message


@pytest.mark.parametrize("rows", [0, MAX_INSTANCES + 1])
def test_arrow_rows_are_bounded(rows: int) -> None:
    assert arrow_fault(codec(AGE), arrow({"age": pa.array([1.0] * rows, pa.float64())})).field == "instances"


def test_a_stream_of_many_empty_batches_is_rejected() -> None:
    batch = pa.record_batch({"age": pa.array([], pa.float64())})
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, batch.schema) as writer:
        for _ in range(MAX_INSTANCES + 2):
            writer.write_batch(batch)
    assert arrow_fault(codec(AGE), out.getvalue().to_pybytes()).field == "instances"


def test_a_column_of_two_billion_nulls_is_rejected() -> None:
    nulls = pa.Array.from_buffers(pa.null(), 2**31 - 1, [None])
    assert arrow_fault(codec(AGE), arrow({"age": nulls})).field == "instances"


@pytest.mark.parametrize("codec_name", ["lz4", "zstd"])
def test_a_compressed_arrow_stream_is_rejected(codec_name: str) -> None:
    options = pa.ipc.IpcWriteOptions(compression=codec_name)
    plain = pa.table({"age": np.zeros(1000)})
    dictionary_table = pa.table({"age": pa.array(["a" * 1000] * 10).dictionary_encode()})
    for table in (plain, dictionary_table):
        assert "send it uncompressed" in arrow_fault(codec(AGE), stream(table, options)).message


def test_strings_that_refer_to_the_same_bytes_many_times_are_bounded() -> None:
    word = pa.array(["x" * 200_000])
    views = pa.array(["x" * 200_000], pa.string_view())
    data = views.buffers()[1]
    repeated_strings = pa.StringViewArray.from_buffers(
        pa.string_view(), 2000, [None, pa.py_buffer(data.to_pybytes()[:16] * 2000), views.buffers()[2]]
    )
    string_codec = codec(Input("s", "string"))
    assert "strings hold more" in arrow_fault(string_codec, arrow({"s": repeated_strings})).message
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * MAX_INSTANCES, pa.int32()), word)
    rows = string_codec.decode_arrow(arrow({"s": shared}))
    assert rows.columns is not None
    assert all(s is rows.columns[0][0] for s in rows.columns[0])


@pytest.mark.parametrize(
    "body", [b"", b"abc", b"\xff" * 64, b"ARROW1\0\0", b"\xff\xff\xff\xff\xff\xff\xff\x7f"]
)
def test_a_body_that_is_not_an_arrow_stream_is_rejected(body: bytes) -> None:
    assert "Arrow stream" in arrow_fault(codec(AGE), body).message


def test_a_damaged_arrow_stream_never_crashes_the_process() -> None:
    content = arrow({"age": [1.0, 2.0], "town": pa.array(["a", None]).dictionary_encode()})
    table_decoder = codec(AGE, Input("town", "string", nullable=True))
    rng = np.random.default_rng(0)
    for _ in range(2000):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        end = len(content) if rng.random() < 0.7 else int(rng.integers(0, len(content)))
        try:
            rows = table_decoder.decode_arrow(bytes(damaged[:end]))
        except Invalid:
            continue
        assert 1 <= len(rows) <= MAX_INSTANCES


def test_closed_categories_apply_to_arrow() -> None:
    closed = codec(
        Input("c", "string", categories=("red", "blue"), closed=True),
        Input("k", "int64", categories=(1, 2), closed=True),
    )
    assert len(closed.decode_arrow(arrow({"c": ["red"], "k": [1]}))) == 1
    errors = arrow_faults(closed, arrow({"c": ["red", "green"], "k": [1, 3]}))
    assert [(f.instance, f.field) for f in errors] == [(1, "c"), (1, "k")]


BELOW_2_63 = float(np.nextafter(2.0**63, 0))
EDGES: list[tuple[Any, list[Any], list[Any]]] = [
    # Arrow type, accepted and rejected values of an int64 feature that is not in a matrix
    (pa.float64(), [-(2.0**63), -(2.0**53), 2.0**53, 2.0**53 + 2, BELOW_2_63], [2.0**63, -(2.0**63) - 2048]),
    (pa.int64(), [-(2**63), -(2**53) - 1, 2**53 + 1, 2**63 - 1], []),
    (pa.uint64(), [0, 2**53 + 1, 2**63 - 1], [2**63, 2**64 - 1]),
]


@pytest.mark.parametrize(("kind", "accepted", "rejected"), EDGES, ids=lambda value: str(value)[:8])
def test_an_int64_beside_text_holds_every_arrow_integer_up_to_its_bound(
    kind: Any, accepted: list[Any], rejected: list[Any]
) -> None:
    with_text = codec(Input("n", "int64"), Input("s", "string"))
    rows = with_text.decode_arrow(arrow({"n": pa.array(accepted, kind), "s": ["x"] * len(accepted)}))
    assert rows.columns is not None
    assert rows.columns[0].dtype == np.int64
    assert rows.columns[0].tolist() == [int(v) for v in accepted]
    for value in rejected:
        fault = arrow_fault(with_text, arrow({"n": pa.array([0, value], kind), "s": ["x", "y"]}))
        assert (fault.instance, fault.field) == (1, "n")
        assert "outside the range of int64" in fault.message


@pytest.mark.parametrize("nullable", [True, False])
@pytest.mark.parametrize("kind", [pa.float64(), pa.int64(), pa.uint64()], ids=str)
def test_an_int64_in_a_matrix_holds_arrow_integers_below_two_to_the_53(kind: Any, nullable: bool) -> None:
    numbers = codec(Input("n", "int64", nullable=nullable))
    number = float if kind == pa.float64() else int
    for sign in (1,) if kind == pa.uint64() else (1, -1):
        rows = numbers.decode_arrow(arrow({"n": pa.array([number(sign * (2**53 - 1))], kind)}))
        assert rows.matrix is not None
        assert rows.matrix.tolist() == [[sign * (2**53 - 1)]]
        for beyond in (2**53, 2**53 + 2):
            fault = arrow_fault(numbers, arrow({"n": pa.array([number(0), number(sign * beyond)], kind)}))
            assert (fault.instance, fault.field) == (1, "n")
            assert "beyond 9007199254740991" in fault.message


@pytest.mark.parametrize("rows", [1, MAX_INSTANCES])
def test_one_to_ten_thousand_arrow_rows_are_accepted(rows: int) -> None:
    assert len(codec(AGE).decode_arrow(arrow({"age": np.zeros(rows)}))) == rows


def test_rows_are_counted_over_all_batches() -> None:
    table = pa.table({"age": np.zeros(MAX_INSTANCES + 1)})
    assert arrow_fault(codec(AGE), stream(table, chunk=MAX_INSTANCES)).field == "instances"
    assert len(codec(AGE).decode_arrow(stream(table.slice(1), chunk=MAX_INSTANCES - 1))) == MAX_INSTANCES


def test_empty_batches_are_accepted_up_to_the_limit_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = codec(AGE).columns
    empty = pa.record_batch({"age": pa.array([], pa.float64())})
    full = pa.record_batch({"age": [1.0]})

    def decode(empty_batches: int) -> int:
        out = pa.BufferOutputStream()
        with pa.ipc.new_stream(out, empty.schema) as writer:
            writer.write_batch(full)
            for _ in range(empty_batches):
                writer.write_batch(empty)
        return len(arrow_codec.decode_arrow(out.getvalue().to_pybytes(), columns, 3))

    assert decode(3) == 1
    with pytest.raises(Invalid, match="more than 3 rows"):
        decode(4)


TEXTS = ["four", None, "", "\u00e9", "123456"]  # 12 bytes of UTF-8
TEXT_ARRAYS = {
    "string": pa.array(TEXTS),
    "large string": pa.array(TEXTS, pa.large_string()),
    "string view": pa.array(TEXTS, pa.string_view()),
    "slice of strings": pa.array(["longer than all others", *TEXTS, "after"]).slice(1, 5),
    "slice of views": pa.array(["longer than all others", *TEXTS, "after"], pa.string_view()).slice(1, 5),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
}


@pytest.mark.parametrize("data", TEXT_ARRAYS.values(), ids=TEXT_ARRAYS)
def test_the_bytes_of_text_in_an_array_are_counted_exactly(data: Any) -> None:
    assert arrow_codec._text_bytes(data) == 12


def test_numbers_and_null_have_no_bytes_of_text() -> None:
    for data in (pa.array([1.5]), pa.array([True]), pa.nulls(3), pa.array([None], pa.string())):
        assert arrow_codec._text_bytes(data) == 0


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_the_limit_of_text_counts_all_columns_and_batches(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the dictionary that each batch of a stream may replace."""
    monkeypatch.setattr(arrow_codec, "MAX_TEXT_BYTES", 40)
    columns = codec(Input("s", "string"), Input("x", "float64"), Input("t", "string")).columns

    def decode(s: list[str], t: list[str]) -> int:
        batches = [
            pa.record_batch(
                {"s": pa.array([a]).cast(kind), "x": pa.array([0.5]), "t": pa.array([b]).cast(kind)}
            )
            for a, b in zip(s, t, strict=True)
        ]
        out = pa.BufferOutputStream()
        with pa.ipc.new_stream(out, batches[0].schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return len(arrow_codec.decode_arrow(out.getvalue().to_pybytes(), columns, 10))

    ten = [f"{n:010}" for n in range(4)]
    assert decode(ten[:2], ten[2:]) == 2
    assert decode(ten[:1], ["y" * 30]) == 1
    for s, t in ((["z" * 11, ten[0]], ten[2:]), (ten[:2], [ten[2], "z" * 11]), (ten[:1], ["y" * 31])):
        with pytest.raises(Invalid, match="the strings hold more than 40 bytes"):
            decode(s, t)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compression_is_noticed_in_every_batch_of_a_stream(compression: str) -> None:
    """Of the data and of a dictionary; in the first batch and in a later one."""
    compressed = pa.ipc.IpcWriteOptions(compression=compression)
    table = pa.table({"age": pa.array(["a" * 500] * 5).dictionary_encode()})
    numbers = pa.table({"age": np.zeros(500)})
    for data in (table, numbers):
        messages = list(pa.ipc.MessageReader.open_stream(stream(data, compressed)))
        kinds = [arrow_codec._compressed(m.metadata.to_pybytes()) for m in messages]
        assert kinds == [m.type != "schema" for m in messages]
        plain = list(pa.ipc.MessageReader.open_stream(stream(data)))
        assert not any(arrow_codec._compressed(m.metadata.to_pybytes()) for m in plain)
    late = stream(numbers)[:-8] + stream(numbers, compressed)[len(stream(numbers.slice(0, 0))) - 8 :]
    assert "send it uncompressed" in arrow_fault(codec(AGE), late).message


def test_a_value_of_the_body_is_read_once_per_entry_of_a_dictionary() -> None:
    values = arrow_codec._values(
        pa.chunked_array(
            [pa.array(["a", None, "a"]).dictionary_encode(), pa.array(["b"]).dictionary_encode()]
        )
    )
    assert values == ["a", None, "a", "b"]
    assert values[0] is values[2]


def test_nan_and_infinity_are_null_in_arrow_answers() -> None:
    table = {"value": np.array([1.5, np.nan, np.inf, -np.inf]), "n": np.array([1, 2, 3, 2**63 - 1])}
    read = pa.ipc.open_stream(arrow_codec.encode_arrow(table)).read_all()
    assert read.to_pydict() == {"value": [1.5, None, None, None], "n": [1, 2, 3, 2**63 - 1]}
    assert read.schema.types == [pa.float64(), pa.int64()]
    empty = pa.ipc.open_stream(arrow_codec.encode_arrow({"label": np.array([], object)})).read_all()
    assert empty.schema.types == [pa.string()]


def test_a_column_name_that_is_not_utf8_is_named() -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"age": [1.0], "bXd": [1.0]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body = sink.getvalue().to_pybytes().replace(b"bXd", b"b\xffd")
    codec = Codec(Signature("regression", (Input("age", "float64"),), (Output("value", "float64", (-1,)),)))
    with pytest.raises(Invalid, match=r'the name of column "b\\\\xffd" is not valid UTF-8; rename it'):
        codec.decode_arrow(body)
