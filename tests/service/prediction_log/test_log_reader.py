"""Reading a log: the order of time, several versions, files that are replaced, labels, and formats."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from registry.labels import Label, LabelValue
from registry.media_types import CSV, NDJSON, PARQUET
from registry.signature import Input, Output, Signature
from service.formats.writing import encode_stream
from service.prediction_log import log_files, log_parquet
from service.prediction_log.log_parquet import merge_files
from service.prediction_log.log_reader import LogReader, Selection, typed_label
from tests.registry.signatures import SIGNATURES
from tests.service.prediction_log.calls import (
    RecordedCall,
    decode,
    inputs,
    outputs_of,
    prediction_id_of,
    read,
    simple_call,
    write_calls,
)

REPORTED_AT = datetime(2026, 12, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


def test_rows_of_several_writers_come_in_the_order_of_time(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(log_parquet, "BATCH_ROWS", 7)
    for writer in range(5):
        write_calls(tmp_path, [simple_call(n) for n in range(1 + writer, 200, 5)], f"a-{writer}")
    write_calls(tmp_path, [simple_call(n, rows=3) for n in range(300, 320)], "b-1")
    assert inputs(read(tmp_path)) == [*range(1, 200), *(n for n in range(300, 320) for _ in range(3))]


def test_a_selection_includes_its_start_and_excludes_its_end(tmp_path: Path) -> None:
    write_calls(tmp_path, [simple_call(n) for n in range(1, 10)], "a-1")
    write_calls(tmp_path, [simple_call(n) for n in range(20, 30)], "a-2")
    assert inputs(read(tmp_path, at(3), at(6))) == [3, 4, 5]
    assert inputs(read(tmp_path, at(9), at(20.000001))) == [9, 20]
    assert inputs(read(tmp_path, None, at(2))) == [1]
    assert inputs(read(tmp_path, at(28.5))) == [29]
    assert read(tmp_path, at(10), at(11)) == []


def test_versions_are_read_together_with_one_schema_and_alone_with_their_own(tmp_path: Path) -> None:
    inputs_1 = (Input("x", "float64"), Input("n", "int64"), Input("old", "bool"))
    inputs_2 = (Input("x", "float32"), Input("n", "string"), Input("new", "int64"))
    outputs = (Output("value", "float64", (-1,)),)
    first, second = Signature("regression", inputs_1, outputs), Signature("regression", inputs_2, outputs)
    for version, signature, row in (
        (1, first, {"x": 0.1, "n": 5, "old": True}),
        (2, second, {"x": 0.5, "n": "five", "new": 6}),
    ):
        rows = decode(signature, [row])
        call = RecordedCall(version, f"p{version}", None, None, 1, rows, outputs_of(signature, 1))
        write_calls(tmp_path, [call], "a-1", version=version, signature=signature)
    both = read(tmp_path)
    columns = ("version", "input.x", "input.n", "input.old", "input.new")
    assert [tuple(row[c] for c in columns) for row in both] == [
        (1, 0.1, "5", True, None),
        (2, 0.5, "five", None, 6),
    ]
    (alone,) = read(tmp_path, None, None, 1)
    assert (alone["input.n"], "input.new" in alone) == (5, False)
    assert read(tmp_path, None, None, 3) == []


def test_a_log_without_files_has_the_columns_of_calls(tmp_path: Path) -> None:
    reader = LogReader(tmp_path / "m.7", Selection(), lambda ids: {})
    assert list(reader.batches()) == []
    assert reader.schema.names[:3] == ["id", "row", "time"]
    assert reader.schema.names[-3:] == ["feedback.label", "feedback.time", "feedback.invalid"]


def test_reading_continues_when_files_are_merged_meanwhile(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(log_parquet, "BATCH_ROWS", 5)
    for number in range(10):
        write_calls(tmp_path, [simple_call(10 * number + n) for n in range(1, 11)], f"a-{number}")
    directory = tmp_path / "m.7"
    batches = LogReader(directory, Selection(at(4), at(95))).batches()
    rows = [next(batches)]
    merge_files(log_files.list_files(directory / "1"), "b-1")
    rows += list(batches)
    assert [x for batch in rows for x in batch.column("input.x").to_pylist()] == list(range(4, 95))


def test_reading_ends_when_the_rest_of_a_log_was_deleted(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(log_parquet, "BATCH_ROWS", 5)
    for number in range(3):
        write_calls(tmp_path, [simple_call(10 * number + n) for n in range(1, 11)], f"a-{number}")
    batches = LogReader(tmp_path / "m.7", Selection()).batches()
    next(batches)
    log_files.delete_log(tmp_path / "m.7")
    assert len([row for batch in batches for row in batch.to_pylist()]) == 5, "those of the open file"


def lookup_of(labels: dict[tuple[str, int], LabelValue]) -> Any:
    def lookup(ids: Collection[str]) -> Mapping[tuple[str, int], Label]:
        return {key: Label(value, REPORTED_AT) for key, value in labels.items() if key[0] in ids}

    return lookup


def test_labels_join_their_prediction_and_row_and_others_stay_null(tmp_path: Path) -> None:
    write_calls(tmp_path, [simple_call(n, rows=2) for n in (1, 2, 3, 4)], "a-1")
    labels: dict[tuple[str, int], LabelValue] = {
        (prediction_id_of(1), 1): 7,
        (prediction_id_of(2), 0): "2.5",
        (prediction_id_of(3), 0): "high",
        (prediction_id_of(4), 0): None,
        (prediction_id_of(4), 5): 1,
        (prediction_id_of(99), 0): 1,
    }
    rows = read(tmp_path, lookup=lookup_of(labels))
    assert [(row["feedback.label"], row["feedback.invalid"]) for row in rows] == [
        (None, None), (7.0, None), (2.5, None), (None, None), (None, '"high"'), (None, None), (None, None),
        (None, None),
    ]  # fmt: skip
    assert [row["feedback.time"] for row in rows[:2]] == [None, REPORTED_AT]


def test_models_with_several_targets_have_a_label_column_for_each(tmp_path: Path) -> None:
    signature = SIGNATURES["multi-output"]
    rows = decode(signature, [{"x0": 1, "x1": 2}] * 3)
    call = RecordedCall(1.0, "p", None, None, 3, rows, outputs_of(signature, 3))
    write_calls(tmp_path, [call], "a-1", signature=signature)
    labels: dict[tuple[str, int], LabelValue] = {
        ("p", 0): {"y0": "1", "y1": "x"}, ("p", 1): {"y1": "y"}, ("p", 2): 1,
    }  # fmt: skip
    logged = read(tmp_path, lookup=lookup_of(labels))
    columns = ("feedback.label.y0", "feedback.label.y1", "feedback.invalid")
    assert [tuple(row[c] for c in columns) for row in logged] == [
        (1, "x", None), (None, "y", None), (None, None, "1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("label", "dtype", "expected"),
    [
        ("1", "int64", 1), (1.0, "int64", 1), ("-3.0", "int64", -3), (1.5, "int64", None),
        (True, "int64", None),
        ("9" * 19, "int64", None), ("a", "int64", None), (1, "string", "1"), (True, "string", "true"),
        ("true", "bool", True), ("False", "bool", False), (1, "bool", None), ("1e3", "float64", 1000.0),
        ("nan", "float64", None), (False, "float64", None), (2, "float64", 2.0),
    ],
)  # fmt: skip
def test_a_label_has_the_type_of_the_prediction_or_none(label: Any, dtype: Any, expected: Any) -> None:
    converted = typed_label(label, dtype)
    assert (converted, type(converted)) == (expected, type(expected))


@pytest.mark.parametrize("media_type", [NDJSON, CSV, PARQUET])
def test_every_format_reads_back_as_the_same_rows(media_type: str, tmp_path: Path) -> None:
    signature = SIGNATURES["regression"]
    row = {"mean radius": 1.5, "âge.v1": None, 'country | "code" <b>': "FR", "plan": 'a "b",\n', "grade": 2}
    rows = decode(signature, [row | {"active": True, "ratio": 0.5}] * 2)
    call = RecordedCall(1.25, "p", None, "r", 2, rows, outputs_of(signature, 2))
    write_calls(tmp_path, [call], "a-1", signature=signature)
    reader = LogReader(tmp_path / "m.7", Selection(), lookup_of({("p", 0): 3}))
    expected = read(tmp_path, lookup=lookup_of({("p", 0): 3}))
    body = b"".join(encode_stream(reader.batches(), reader.schema, media_type))
    if media_type == PARQUET:
        assert pq.read_table(io.BytesIO(body)).to_pylist() == expected
    elif media_type == NDJSON:
        lines = [msgspec.json.decode(line) for line in body.splitlines()]
        assert lines == msgspec.json.decode(msgspec.json.encode(expected))
        assert list(lines[0]) == reader.schema.names
    else:
        cells = list(csv.DictReader(io.StringIO(body.decode())))
        assert [c["input.plan"] for c in cells] == ['a "b",\n'] * 2
        assert [c["input.âge.v1"] for c in cells] == ["", ""]
        assert [float(c["output.value"]) for c in cells] == [r["output.value"] for r in expected]
