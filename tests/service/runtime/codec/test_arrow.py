"""Arrow bodies: accepted columns, and the fault of each rejected value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from registry.errors import FieldError, Invalid
from registry.signature import Input, Output, Signature
from service.runtime.codec import MAX_INSTANCES, Codec

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


def test_infinity_is_null_in_a_nullable_arrow_column() -> None:
    nullable = codec(Input("x", "float64", nullable=True))
    rows = nullable.decode_arrow(arrow({"x": [1.0, np.inf, np.nan]}))
    assert rows.matrix is not None
    assert np.isnan(rows.matrix[1:]).all()


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
