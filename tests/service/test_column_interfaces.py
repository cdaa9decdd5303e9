"""A column of any type is the same feature on every interface, or refused everywhere with the same reason.

The types come from the table of column types itself. Interfaces: the published example, online bodies (also
those of the Open Inference Protocol and of MLflow), files of scoring jobs and files of trainings, each
in every format that can hold the column.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.errors import Invalid, Refused
from registry.media_types import ARROW, CSV, JSON, NDJSON, PARQUET
from registry.signature import DType, Input, Output, Signature
from registry.text_tables import MISSING_WORDS
from service.compiler import example
from service.formats import reading
from service.formats.column_types import feature_dtypes
from service.formats.writing import PartWriter
from service.runtime.codec import Codec
from service.runtime.codec.arrow_types import FAMILIES, TypeFamily, decode, plain_type, to_dtype
from service.runtime.codec.columns import Column
from service.runtime.codec.tensors import DATATYPE_OF
from tests.service.column_samples import SAMPLES, encodings

Interface = Callable[[Any, DType], list[Any]]
"""Returns the values of the feature `d` as the model receives them, missing ones as None."""


def codec_of(dtype: DType, nullable: bool = True) -> Codec:
    value = (Output("value", "float64", (-1,)),)
    return Codec(Signature("regression", (Input("d", dtype, nullable=nullable),), value))


def plain(values: Any) -> list[Any]:
    return [None if v is None or v != v else v for v in values]


def rows_of_codec(rows: Any) -> list[Any]:
    array = rows.columns[0] if rows.matrix is None else rows.matrix[:, 0]
    return plain(array.tolist())


def from_example(path: Path, media_type: str, dtype: DType) -> list[Any]:
    table = example.read(path, media_type)
    assert table.dtype("d") == dtype
    return plain(table.column("d").to_pylist())


def from_job(path: Path, media_type: str, dtype: DType) -> list[Any]:
    dataset = reading.open_dataset(str(path), media_type)
    (part,) = reading.split(dataset)
    values: list[Any] = []
    for batch in reading.read_batches(dataset, part, codec_of(dtype).columns, [], None):
        for fault in batch.faults:
            raise Invalid(fault.message)
        values += rows_of_codec(batch.rows)
    return values


def from_training(path: Path, media_type: str, dtype: DType) -> list[Any]:
    dataset = reading.open_dataset(str(path), media_type, uniform=True)
    assert feature_dtypes(dataset, ["d"]) == {"d": dtype}
    (part,) = reading.split(dataset)
    batches = reading.read_record_batches(dataset, part, ["d"])
    return [v for b in batches for v in plain(to_dtype(b.column("d"), dtype).to_pylist())]


def ipc(table: Any, open_writer: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with open_writer(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def typed_interfaces(path: Path, array: Any) -> Iterator[tuple[str, Callable[[DType], list[Any]]]]:
    table = pa.table({"d": array})
    yield (
        "online Arrow",
        lambda dtype: rows_of_codec(codec_of(dtype).decode_arrow(ipc(table, pa.ipc.new_stream))),
    )
    (path / "d.arrow").write_bytes(ipc(table, pa.ipc.new_file))
    yield "job Arrow", lambda dtype: from_job(path / "d.arrow", ARROW, dtype)
    yield "training Arrow", lambda dtype: from_training(path / "d.arrow", ARROW, dtype)
    try:
        pq.write_table(table, path / "d.parquet")
    except (pa.ArrowException, OSError):  # run ends, unions and intervals
        return
    yield "job Parquet", lambda dtype: from_job(path / "d.parquet", PARQUET, dtype)
    yield "training Parquet", lambda dtype: from_training(path / "d.parquet", PARQUET, dtype)
    yield "example Parquet", lambda dtype: from_example(path / "d.parquet", PARQUET, dtype)


def text_interfaces(path: Path, values: list[Any]) -> Iterator[tuple[str, Callable[[DType], list[Any]]]]:
    lines = [json.dumps({"d": v}) for v in values]
    body = f'{{"instances": [{", ".join(lines)}]}}'.encode()
    yield "online JSON", lambda dtype: rows_of_codec(codec_of(dtype).decode_json(body))
    records = f'{{"dataframe_records": [{", ".join(lines)}]}}'.encode()
    yield "MLflow", lambda dtype: rows_of_codec(codec_of(dtype).decode_scoring(records))
    yield (
        "Open Inference",
        lambda dtype: rows_of_codec(
            codec_of(dtype).decode_inference(tensor_body(values, dtype), None, "m", 1)[0]
        ),
    )
    (path / "d.jsonl").write_text("\n".join(lines))
    yield "job NDJSON", lambda dtype: from_job(path / "d.jsonl", NDJSON, dtype)
    yield "training NDJSON", lambda dtype: from_training(path / "d.jsonl", NDJSON, dtype)
    (path / "d.json").write_text(f"[{', '.join(lines)}]")
    yield "example JSON", lambda dtype: from_example(path / "d.json", JSON, dtype)
    yield from csv_interfaces(path, ["" if v is None else str(v) for v in values])


def tensor_body(values: list[Any], dtype: DType) -> bytes:
    tensor = {"name": "d", "shape": [len(values)], "datatype": DATATYPE_OF[dtype], "data": values}
    return json.dumps({"inputs": [tensor]}).encode()


def csv_interfaces(path: Path, cells: list[str]) -> Iterator[tuple[str, Callable[[DType], list[Any]]]]:
    text = io.StringIO()
    csv.writer(text).writerows([["d"], *([cell] for cell in cells)])
    body = text.getvalue().encode()
    (path / "d.csv").write_bytes(body)
    yield "online CSV", lambda dtype: rows_of_codec(codec_of(dtype).decode_csv(body))
    yield "job CSV", lambda dtype: from_job(path / "d.csv", CSV, dtype)
    yield "training CSV", lambda dtype: from_training(path / "d.csv", CSV, dtype)
    yield "example CSV", lambda dtype: from_example(path / "d.csv", CSV, dtype)


def expected_values(array: Any, dtype: DType) -> list[Any]:
    """Return Python's own values: the float nearest to a decimal, and text as it is."""
    values = [v.item() if isinstance(v, np.generic) else v for v in array.to_pylist()]
    return [float(v) if isinstance(v, Decimal) else v for v in values]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.title)
def test_a_typed_column_is_the_same_on_all_interfaces(tmp_path: Path, family: TypeFamily) -> None:
    for array in SAMPLES[family.title]:
        # Arrow cannot read dictionaries of extension types, and forgets that a dictionary holds durations
        plain_only = pa.types.is_duration(array.type) or isinstance(array.type, pa.BaseExtensionType)
        for encoded in [array] if plain_only else encodings(array):
            for interface, read in typed_interfaces(tmp_path, encoded):
                if family.dtype is not None:
                    assert read(family.dtype) == expected_values(array, family.dtype), (
                        interface,
                        encoded.type,
                    )
                    continue
                with pytest.raises((Invalid, Refused)) as caught:
                    read("float64")
                assert '"d" is of type' in str(caught.value), interface
                assert family.reason in str(caught.value), (interface, encoded.type)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float64", [0.1, -2.5, None, 1e300]),
        ("int64", [1, -(2**53) + 1]),
        ("float64", [1, None, 2.5]),
        ("bool", [True, False, True]),
        ("string", ["a", "é, \"b\"", "x\ny"]),
        ("string", ["01067", "12"]),
        ("string", ["2026-01-01", "2026-01-02"]),
        ("string", ["NA", "ZA", "None", "null"]),
    ],
    ids=str,
)  # fmt: skip
def test_text_becomes_the_same_on_all_interfaces(tmp_path: Path, dtype: DType, values: list[Any]) -> None:
    for interface, read in text_interfaces(tmp_path, values):
        assert read(dtype) == values, interface


@pytest.mark.parametrize("word", MISSING_WORDS[1:])
@pytest.mark.parametrize(("dtype", "cells"), [("float64", ["1.5", "2"]), ("bool", ["true", "false"])])
def test_missing_words_are_the_same_on_all_csv_interfaces(
    tmp_path: Path, dtype: DType, cells: list[str], word: str
) -> None:
    values = [json.loads(cells[0]), None, json.loads(cells[1])]
    for interface, read in csv_interfaces(tmp_path, [cells[0], word, cells[1]]):
        assert read(dtype) == values, interface


@pytest.mark.parametrize(
    "cells",
    [["NA", "None"], ["+3", "1"], [" NA ", "+1.50"], [" ", "2"], ["", "nan"], ["-nan", "true"], ["1_0"],
     ["TRUE", "False", ""], ["0", "False"], ["1", "true"], ["\u00a05"], ["nan(1)", "1"], ["1e999", "1"],
     ["0x10"], ["007", "7"], ["9223372036854775807", "1"], ["9223372036854775808"], ["1,5", "2"],
     ["9007199254740993", "1.5"], ["yes", "no"]],
    ids=str,
)  # fmt: skip
def test_types_of_a_csv_are_inferred_alike_for_an_example_and_a_training(
    tmp_path: Path, cells: list[str]
) -> None:
    interfaces = dict(csv_interfaces(tmp_path, cells))
    dtype = example.read(tmp_path / "d.csv", CSV).dtype("d")
    assert repr(interfaces["example CSV"](dtype)) == repr(interfaces["training CSV"](dtype))


def test_a_declared_string_keeps_the_text_of_a_csv_on_all_interfaces(tmp_path: Path) -> None:
    cells = ["1.50", "1.5", "True", "NA", " 7", "2026-01-01"]
    for kept in (cells, ["1.50", "2.00"], ["True", "false"], ["007", "7"]):
        interfaces = dict(csv_interfaces(tmp_path, kept))
        assert interfaces["online CSV"]("string") == interfaces["job CSV"]("string") == kept
        assert example.read(tmp_path / "d.csv", CSV).column("d", "string").to_pylist() == kept
        dataset = reading.open_dataset(str(tmp_path / "d.csv"), CSV, uniform=True, dtypes={"d": "string"})
        (part,) = reading.split(dataset)
        (batch,) = reading.read_record_batches(dataset, part, ["d"])
        assert batch.column("d").to_pylist() == kept


@pytest.mark.parametrize("value", [2**24 + 1, 256, -1])
def test_an_integer_outside_the_bounds_is_refused_on_all_interfaces(tmp_path: Path, value: int) -> None:
    feature = Input("d", "int64", minimum=0, maximum=255, enforced=True)
    codec = Codec(Signature("regression", (feature,), (Output("value", "float64", (-1,)),)))
    table = pa.table({"d": pa.array([7, value])})
    pq.write_table(table, tmp_path / "d.parquet")
    (tmp_path / "d.arrow").write_bytes(ipc(table, pa.ipc.new_file))
    (tmp_path / "d.csv").write_text(f"d\n7\n{value}\n")
    (tmp_path / "d.jsonl").write_text(f'{{"d": 7}}\n{{"d": {value}}}\n')
    for read, body in (
        (codec.decode_json, b'{"instances": [{"d": 7}, {"d": %d}]}' % value),
        (codec.decode_csv, b"d\n7\n%d\n" % value),
        (codec.decode_scoring, b'{"dataframe_records": [{"d": 7}, {"d": %d}]}' % value),
        (lambda body: codec.decode_inference(body, None, "m", 1), tensor_body([7, value], "int64")),
        (codec.decode_arrow, ipc(table, pa.ipc.new_stream)),
    ):
        with pytest.raises(Invalid, match=r"the model's input holds uint8: 0 to 255"):
            read(body)
    for name, media_type in (("parquet", PARQUET), ("arrow", ARROW), ("csv", CSV), ("jsonl", NDJSON)):
        dataset = reading.open_dataset(str(tmp_path / f"d.{name}"), media_type)
        (part,) = reading.split(dataset)
        (batch,) = reading.read_batches(dataset, part, codec.columns, [], None)
        assert rows_of_codec(batch.rows) == [7]
        (fault,) = batch.faults
        assert fault.row == 1
        assert "the model's input holds uint8: 0 to 255" in fault.message


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.title)
def test_a_copied_column_keeps_its_values_or_is_refused(tmp_path: Path, family: TypeFamily) -> None:
    for array in SAMPLES[family.title]:
        for encoded in [array] if isinstance(array.type, pa.BaseExtensionType) else encodings(array):
            path = tmp_path / "in.arrow"
            path.write_bytes(ipc(pa.table({"d": encoded, "x": [1.0, 2.0]}), pa.ipc.new_file))
            if not family.copied:
                with pytest.raises(Invalid, match=r'column "d" has the type .*cannot be copied .* to text'):
                    copied_column(path, tmp_path / "out", PARQUET)
                continue
            text = decode(array).cast(pa.string()).to_pylist()
            output = pq.read_table(copied_column(path, tmp_path / "out", PARQUET)).column("d")
            assert output.cast(plain_type(array.type)).to_pylist() == decode(array).to_pylist(), encoded.type
            with copied_column(path, tmp_path / "out", CSV).open(newline="") as file:
                assert [row["d"] or None for row in csv.DictReader(file)] == text, encoded.type
            lines = copied_column(path, tmp_path / "out", NDJSON).read_text().splitlines()
            assert len(lines) == 2
            if pa.types.is_floating(array.type) or pa.types.is_integer(array.type):
                assert [json.loads(line)["d"] for line in lines] == array.to_pylist()


def copied_column(path: Path, output: Path, media_type: str) -> Path:
    """Copy the column `d` of an Arrow file as a scoring job does; return the output."""
    dataset = reading.open_dataset(str(path), ARROW)
    schema = reading.extra_schema(dataset, ["d"])
    columns = [Column(Input("x", "float64"))]
    (part,) = reading.split(dataset)
    with PartWriter(output, media_type, schema, copied=1) as writer:
        for batch in reading.read_batches(dataset, part, columns, ["d"], "d"):
            writer.write(batch.extra)
        writer.close()
    return output
