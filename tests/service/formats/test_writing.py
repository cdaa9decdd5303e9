from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.errors import Invalid
from registry.media_types import ARROW, CSV, NDJSON, OUTPUT_TYPES, PARQUET
from service.formats import assembly, writing
from service.formats.assembly import PartErrors
from service.formats.dataset import RowFault
from service.formats.writing import ErrorWriter, PartWriter, WrittenFile, find_unwritable_rows
from tests.harness.durability import Event, recorded

SCHEMA = pa.schema(
    [("id", pa.string()), ("label", pa.string()), ("value", pa.float64()), ("small", pa.float32()),
     ("n", pa.int64()), ("flag", pa.bool_())]
)  # fmt: skip
ROWS = st.lists(
    st.tuples(
        st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6),
        st.none() | st.sampled_from(["yes", "no", "", 'a"b', "two\nlines", "a,b", "\r"]),
        st.none() | st.floats(),
        st.none() | st.floats(width=32),
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | st.booleans(),
    ),
    max_size=8,
)


def batch(rows: list[tuple[Any, ...]]) -> Any:
    columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=SCHEMA)


def write(path: Path, media_type: str, rows: list[list[tuple[Any, ...]]]) -> WrittenFile:
    with PartWriter(path, media_type, SCHEMA) as writer:
        for batch_rows in rows:
            writer.write(batch(batch_rows))
        return writer.close()


def joined(parts: list[Path], media_type: str) -> bytes:
    out = io.BytesIO()
    assembly.assemble(parts, media_type, out)
    return out.getvalue()


def expected(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Replace NaN and infinity by null."""
    return [tuple(None if isinstance(v, float) and not math.isfinite(v) else v for v in r) for r in rows]


def read(data: bytes, media_type: str) -> list[tuple[Any, ...]]:
    if media_type == PARQUET:
        table = pq.read_table(io.BytesIO(data))
        assert table.schema.equals(SCHEMA)
        return [tuple(r.values()) for r in table.to_pylist()]
    if media_type == NDJSON:
        return [tuple(json.loads(line).values()) for line in data.splitlines()]
    header, *rows = csv.reader(io.StringIO(data.decode(), newline=""))
    assert header == SCHEMA.names
    return [tuple(r) for r in rows]


def same_as_csv(cells: tuple[str, ...], row: tuple[Any, ...]) -> bool:
    """Whether Python's CSV reader returns the row. It reads null as an empty string."""
    texts = ["" if v is None else str(v).lower() if isinstance(v, bool) else v for v in row]
    numbers = {2: float, 3: np.float32, 4: int}
    return all(
        numbers[j](cell) == value if j in numbers and cell else cell == value
        for j, (cell, value) in enumerate(zip(cells, texts, strict=True))
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.lists(ROWS, max_size=3), min_size=1, max_size=4))
@pytest.mark.parametrize("media_type", [PARQUET, CSV, NDJSON])
def test_assembled_parts_contain_the_rows_that_were_written(
    tmp_path: Path, media_type: str, parts: list[list[list[tuple[Any, ...]]]]
) -> None:
    paths = [tmp_path / f"part{i}" for i in range(len(parts))]
    for path, rows in zip(paths, parts, strict=True):
        written = write(path, media_type, rows)
        assert written.rows == sum(map(len, rows))
        assert (written.bytes, written.sha256) == (
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
    read_rows = read(joined(paths, media_type), media_type)
    expected_rows = expected([row for rows in parts for batch_rows in rows for row in batch_rows])
    if media_type == CSV:
        assert [same_as_csv(*pair) for pair in zip(read_rows, expected_rows, strict=True)].count(False) == 0
    else:
        assert read_rows == expected_rows


def test_each_row_group_of_joined_parquet_can_be_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.formats.writing.GROUP_ROWS", 3)
    rows = [(f"{i}", "yes", i / 3, None, i, True) for i in range(100)]
    paths = [tmp_path / f"{i}" for i in range(20)]
    for i, path in enumerate(paths):
        write(path, PARQUET, [rows[i * 5 : i * 5 + 2], rows[i * 5 + 2 : i * 5 + 5]])
    data = joined(paths, PARQUET)
    assert pd.read_parquet(io.BytesIO(data))["id"].tolist() == [r[0] for r in rows]
    file = pq.ParquetFile(io.BytesIO(data))
    assert file.metadata.num_rows == 100
    for group in range(file.num_row_groups):  # each can be read without the previous ones
        assert (
            file.read_row_group(group)["n"].to_pylist()
            == file.read_row_group(group)["id"].cast("int64").to_pylist()
        )
    assert pq.read_table(io.BytesIO(data), filters=[("n", "==", 77)])["id"].to_pylist() == ["77"]


def test_a_joined_file_can_be_joined_again(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path / f"{i}", PARQUET, [[(f"{i}", "yes", 1.5, None, i, True)]])
    for i in (0, 2):
        (tmp_path / f"j{i}").write_bytes(joined([tmp_path / f"{i}", tmp_path / f"{i + 1}"], PARQUET))
    data = joined([tmp_path / "j0", tmp_path / "j2"], PARQUET)
    assert pq.read_table(io.BytesIO(data))["n"].to_pylist() == [0, 1, 2, 3]


@pytest.mark.parametrize("values", [[1.5, None, 1e-7], ["a", None, 'x"y']])
def test_null_in_a_csv_of_one_column_is_a_row(tmp_path: Path, values: list[Any]) -> None:
    column = pa.array(values)
    schema = pa.schema([("v", column.type)])
    with PartWriter(tmp_path / "part", CSV, schema) as writer:
        writer.write(pa.record_batch([column.slice(0, 1)], schema=schema))
        writer.write(pa.record_batch([column], schema=schema))
        assert writer.close().rows == 4
    assert [None if v != v else v for v in pd.read_csv(tmp_path / "part")["v"]] == [values[0], *values]


def test_an_incomplete_part_is_not_joined(tmp_path: Path) -> None:
    write(tmp_path / "a", PARQUET, [[("1", "yes", 1.5, None, 1, True)]])
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-3])
    with pytest.raises(Invalid, match="incomplete"):
        joined([tmp_path / "a"], PARQUET)


@pytest.mark.parametrize("media_type", [PARQUET, CSV, NDJSON])
def test_a_part_is_complete_or_absent(tmp_path: Path, media_type: str) -> None:
    path = tmp_path / "part"
    with PartWriter(path, media_type, SCHEMA) as writer:
        writer.write(batch([("1", "yes", 1.5, None, 1, True)]))
        assert not path.exists()
    assert list(tmp_path.iterdir()) == []
    write(path, media_type, [])
    assert list(tmp_path.iterdir()) == [path]
    assert read(path.read_bytes(), media_type) == []


def test_an_unsupported_output_type_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="output's media type"):
        PartWriter(tmp_path / "part", ARROW, SCHEMA)
    assert list(tmp_path.iterdir()) == []


def test_parts_of_every_output_type_can_be_joined() -> None:
    for media_type in OUTPUT_TYPES:
        assembly.assemble([], media_type, io.BytesIO())
    with pytest.raises(KeyError):
        assembly.assemble([], ARROW, io.BytesIO())


def test_assembled_errors_number_rows_in_the_input_and_in_the_file(tmp_path: Path) -> None:
    for name, count in (("a", 2), ("b", 0), ("c", 3)):
        with ErrorWriter(tmp_path / name) as writer:
            for i in range(count):
                writer.write(RowFault(i * 10, f"id,{i}", None, 'says "no"\nand why'))
            assert writer.close() == (name if count else None)
    assert not (tmp_path / "b").exists()
    out = io.BytesIO()
    parts = [(tmp_path / "a", 0, "1.csv", 0), (tmp_path / "c", 1000, "2.csv", 500)]
    assembly.assemble_errors([PartErrors(*p) for p in parts], out)
    rows = list(csv.reader(io.StringIO(out.getvalue().decode(), newline="")))
    assert rows[0] == ["row", "id", "field", "message", "file", "file_row"]
    assert [r[0] for r in rows[1:]] == ["0", "10", "1000", "1010", "1020"]
    assert [r[4:] for r in rows[2:4]] == [["1.csv", "10"], ["2.csv", "500"]]
    assert rows[1][1:4] == ["id,0", "", 'says "no"\nand why']


def test_times_that_python_does_not_support_are_text_in_json_lines(tmp_path: Path) -> None:
    rows = pa.record_batch(
        {"at": pa.array([1], pa.timestamp("ns")), "for": pa.array([1500], pa.duration("ns"))}
    )
    path = tmp_path / "out.jsonl"
    with PartWriter(path, NDJSON, rows.schema) as writer:
        writer.write(rows)
        writer.close()
    assert json.loads(path.read_text()) == {"at": "1970-01-01 00:00:00.000000001", "for": "PT0.0000015S"}
    batch = pa.record_batch([pa.array([2**62], pa.timestamp("us"))], names=["far"])
    with (
        PartWriter(path, NDJSON, batch.schema) as writer,
        pytest.raises(Invalid, match="outside the range of calendar dates"),
    ):
        writer.write(batch)


def test_a_full_disk_leaves_no_temporary_file(tmp_path: Path) -> None:
    """Closing an abandoned file fails as well, because it writes buffered data."""
    writer = PartWriter(tmp_path / "part.csv", CSV, SCHEMA)
    file = writer._output.file
    writer._output.file = Mock(wraps=file, close=Mock(side_effect=OSError(28, "No space left on device")))
    with writer:
        writer.write(batch([]))
    file.close()
    assert list(tmp_path.iterdir()) == []


def group_sizes(path: Path, batches: list[Any]) -> list[int]:
    """Write the batches as Parquet; return the number of rows of each row group."""
    with PartWriter(path, PARQUET, batches[0].schema) as writer:
        for rows in batches:
            writer.write(rows)
        written = writer.close()
    metadata = pq.read_metadata(path)
    assert (metadata.num_rows, written.bytes) == (written.rows, path.stat().st_size)
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def test_a_row_group_ends_with_the_batch_that_reaches_the_limit_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, one = pa.record_batch({"n": [1, 2]}), pa.record_batch({"n": [3]})
    monkeypatch.setattr(writing, "GROUP_ROWS", 4)
    assert group_sizes(tmp_path / "a", [two, two, two, one]) == [4, 3]
    assert group_sizes(tmp_path / "b", [two, one, two, one]) == [5, 1]
    assert group_sizes(tmp_path / "c", [two, two]) == [4]
    assert group_sizes(tmp_path / "d", [two, one]) == [3]
    empty = two.slice(0, 0)
    assert group_sizes(tmp_path / "e", [empty, two, empty, two, empty]) == [4]
    assert group_sizes(tmp_path / "f", [empty]) == []


def test_a_row_group_ends_with_the_batch_that_reaches_the_limit_of_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are those of all columns, with the dictionary of each batch."""
    texts = pa.array(["a longer text", "b"])
    rows = pa.record_batch({"n": [1, 2], "text": texts, "code": texts.dictionary_encode(), "x": [0.5, 1.5]})
    sizes = [column.nbytes for column in rows.columns]
    dictionary = rows.column(2).dictionary.nbytes
    assert rows.nbytes == sum(sizes)
    assert 0 < dictionary < sizes[2]
    monkeypatch.setattr(writing, "GROUP_BYTES", 2 * sum(sizes))
    assert group_sizes(tmp_path / "a", [rows] * 5) == [4, 4, 2]
    monkeypatch.setattr(writing, "GROUP_BYTES", 2 * sum(sizes) + 1)
    assert group_sizes(tmp_path / "b", [rows] * 5) == [6, 4]
    monkeypatch.setattr(writing, "GROUP_BYTES", sum(sizes))
    assert group_sizes(tmp_path / "c", [rows] * 3) == [2, 2, 2]
    monkeypatch.setattr(writing, "GROUP_ROWS", 2)
    assert group_sizes(tmp_path / "d", [rows] * 2) == [2, 2]


def test_the_written_file_counts_rows_bytes_and_digest_of_every_batch(tmp_path: Path) -> None:
    one, two = ("1", "yes", 0.5, None, 1, True), ("2", "a", 1.0, 2.0, 3, None)
    contents: list[list[list[tuple[Any, ...]]]] = [[], [[]], [[one]], [[one, two], [], [two]]]
    for media_type in (CSV, NDJSON, PARQUET):
        path = tmp_path / "part"
        for batches in contents:
            written = write(path, media_type, batches)
            data = path.read_bytes()
            assert written == WrittenFile(
                "part", sum(map(len, batches)), len(data), hashlib.sha256(data).hexdigest()
            )


def test_an_errors_file_has_one_line_per_fault(tmp_path: Path) -> None:
    with ErrorWriter(tmp_path / "none.csv") as writer:
        assert writer.close() is None
    with ErrorWriter(tmp_path / "one.csv") as writer:
        writer.write(RowFault(0, None, "a", "bad"))
        assert writer.close() == "one.csv"
    assert (tmp_path / "one.csv").read_bytes() == b"row,id,field,message\r\n0,,a,bad\r\n"
    with ErrorWriter(tmp_path / "lost.csv") as writer:
        writer.write(RowFault(0, None, "a", "bad"))
    assert [p.name for p in tmp_path.iterdir()] == ["one.csv"]


def test_only_nan_and_infinity_become_null(tmp_path: Path) -> None:
    largest, smallest = 1.7976931348623157e308, 5e-324
    numbers = [largest, -largest, smallest, -0.0, math.nan, math.inf, -math.inf, None]
    rows = pa.record_batch({"x": pa.array(numbers), "f": pa.array([0.1] * 8, pa.float32())})
    with PartWriter(tmp_path / "part", PARQUET, rows.schema) as writer:
        writer.write(rows)
        writer.close()
    assert pq.read_table(tmp_path / "part")["x"].to_pylist() == [*numbers[:4], None, None, None, None]
    with PartWriter(tmp_path / "part", NDJSON, rows.schema) as writer:
        writer.write(rows)
        writer.close()
    lines = [json.loads(line)["x"] for line in (tmp_path / "part").read_text().splitlines()]
    assert lines == [*numbers[:4], None, None, None, None]


@pytest.mark.parametrize("media_type", [PARQUET, CSV])
def test_copied_columns_keep_nan_and_infinity(tmp_path: Path, media_type: str) -> None:
    numbers = pa.array([math.nan, math.inf, -math.inf, None, 1.5])
    rows = pa.record_batch({"copied": numbers, "half": numbers.cast(pa.float16()), "value": numbers})
    with PartWriter(tmp_path / "part", media_type, rows.schema, copied=2) as writer:
        writer.write(rows)
        writer.close()
    if media_type == PARQUET:
        table = pq.read_table(tmp_path / "part")
        assert table["copied"].null_count == table["half"].null_count == 1
        assert str(table["copied"].to_pylist()) == "[nan, inf, -inf, None, 1.5]"
        assert table["value"].to_pylist() == [None, None, None, None, 1.5]
    else:
        lines = (tmp_path / "part").read_text().splitlines()
        assert lines[1:] == ["nan,nan,", "inf,inf,", "-inf,-inf,", ",,", "1.5,1.5,1.5"]


@pytest.mark.parametrize("media_type", [NDJSON, CSV])
@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.timestamp("us", "UTC"), pa.date32()])
def test_a_date_that_text_cannot_express_is_refused(tmp_path: Path, media_type: str, kind: Any) -> None:
    for value in (2**31 - 1, -(2**31)) if kind == pa.date32() else (2**62, -(2**62)):
        batch = pa.record_batch({"far": pa.array([value, None], kind)})
        with (
            PartWriter(tmp_path / "part", media_type, batch.schema, copied=1) as writer,
            pytest.raises(Invalid, match=r'column "far" holds a .* outside the range of calendar dates'),
        ):
            writer.write(batch)
        faults = find_unwritable_rows(pa.record_batch({"far": pa.array([0, None, value], kind)}), media_type)
        assert {row: fault.field for row, fault in faults.items()} == {2: "far"}
        assert find_unwritable_rows(batch, PARQUET) == {}


def test_a_time_zone_that_is_not_known_is_named(tmp_path: Path) -> None:
    schema = pa.schema([("at", pa.timestamp("us", "Foo/Bar"))])
    for media_type in (CSV, NDJSON):
        with pytest.raises(
            Invalid, match="column \"at\" has the time zone 'Foo/Bar', which is not known here"
        ):
            PartWriter(tmp_path / "part", media_type, schema)
    with PartWriter(tmp_path / "part", PARQUET, schema, copied=1) as writer:
        writer.write(pa.record_batch([pa.array([1], schema.field(0).type)], schema=schema))
        writer.close()
    assert pq.read_table(tmp_path / "part").schema.equals(schema)


def test_dates_of_every_century_are_written(tmp_path: Path) -> None:
    days = ["-32767-01-01", "1600-01-01", "9999-12-31", "32767-12-31"]
    dates = pa.array(np.array(days, "datetime64[D]"))
    times = pa.array(np.array(days, "datetime64[us]"))
    for media_type in (CSV, NDJSON):
        batch = pa.record_batch({"d": dates, "t": times})
        with PartWriter(tmp_path / "part", media_type, batch.schema, copied=2) as writer:
            writer.write(batch)
            writer.close()
        text = (tmp_path / "part").read_text()
        assert "out of range" not in text
        assert all(text.count(day) == 2 for day in days), text


def test_a_single_column_with_and_without_null_is_read_back(tmp_path: Path) -> None:
    schema = pa.schema([("v", pa.string())])
    with PartWriter(tmp_path / "part", CSV, schema) as writer:
        writer.write(pa.record_batch([pa.array([None, 'q"', "", None])], schema=schema))
        writer.write(pa.record_batch([pa.array(["a"])], schema=schema))
        writer.close()
    assert (tmp_path / "part").read_bytes() == b'"v"\n""\n"q"""\n""\n""\n"a"\n'


FAULT = RowFault(3, "id", "value", "not a number")
ROW = ("1", "yes", 1.5, None, 1, True)


@pytest.mark.parametrize("media_type", OUTPUT_TYPES)
def test_a_part_is_fsynced_before_its_rename_and_its_directory_after_it(
    tmp_path: Path, media_type: str
) -> None:
    with recorded() as log:
        written = write(tmp_path / "part", media_type, [[ROW]])
    log.saved(tmp_path / "part")
    assert log.steps(tmp_path) == [
        "fsync .part.writing",
        "rename .part.writing -> part",
        "fsync .",
    ]
    content = (tmp_path / "part").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert written == WrittenFile("part", 1, len(content), digest)


def test_an_errors_file_is_fsynced_before_its_rename_and_its_directory_after_it(tmp_path: Path) -> None:
    with recorded() as log, ErrorWriter(tmp_path / "errors") as writer:
        writer.write(FAULT)
        assert writer.close() == "errors"
    log.saved(tmp_path / "errors")
    assert log.steps(tmp_path) == [
        "fsync .errors.writing",
        "rename .errors.writing -> errors",
        "fsync .",
    ]


def test_an_errors_file_is_complete_or_absent(tmp_path: Path) -> None:
    with ErrorWriter(tmp_path / "errors") as writer:
        writer.write(FAULT)
        assert [path.name for path in tmp_path.iterdir()] == [".errors.writing"]
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_never_opened_for_writing_at_its_path(tmp_path: Path) -> None:
    with recorded() as log:
        write(tmp_path / "part", CSV, [[ROW]])
    assert [event.path.name for event in log.events if event.kind == "open"] == [".part.writing"]


@pytest.mark.parametrize("step", ["fsync", "rename"])
@pytest.mark.parametrize("media_type", OUTPUT_TYPES)
def test_a_failed_fsync_or_rename_leaves_no_part(tmp_path: Path, media_type: str, step: str) -> None:
    def break_disk(event: Event) -> None:
        if event.kind == step:
            raise OSError(5, "Input/output error")

    with recorded(break_disk), pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "part", media_type, [[ROW]])
    assert list(tmp_path.iterdir()) == []


def test_leaving_the_context_keeps_a_closed_part(tmp_path: Path) -> None:
    with recorded() as log:
        write(tmp_path / "part", CSV, [[ROW]])
    assert log.steps(tmp_path, "unlink") == []
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


@pytest.mark.parametrize("media_type", OUTPUT_TYPES)
def test_an_abandoned_part_receives_no_more_bytes(tmp_path: Path, media_type: str) -> None:
    """pyarrow's writers write the end of a file when they are collected."""
    writer = PartWriter(tmp_path / "part", media_type, SCHEMA)
    with writer:
        writer.write(batch([ROW]))
        size = writer._output.tell()
    output = writer._output
    assert output.file.closed
    assert output.write(b"the end") == 7
    output.flush()
    del writer
    assert (output.tell(), list(tmp_path.iterdir())) == (size, [])


def test_an_encoder_that_cannot_start_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        PartWriter(tmp_path / "part", PARQUET, None)
    assert list(tmp_path.iterdir()) == []
