"""Rows and faults that reading returns, at the limits of messages, ids and first rows."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.errors import Invalid
from registry.media_types import ARROW, CSV, NDJSON, PARQUET
from registry.signature import Input
from service.formats import reading
from service.runtime.codec.columns import Column
from tests.service.formats.read_all import A, N, read_all


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("count", [1, 5, 6])
def test_a_fault_has_the_messages_of_five_fields(tmp_path: Path, count: int) -> None:
    names = [f"x{i}" for i in range(count)]
    path = write(tmp_path / "a.csv", ",".join(names) + "\n" + ",".join(["bad"] * count) + "\n")
    (fault,) = read_all(path, CSV, [Column(Input(name, "float64")) for name in names]).faults
    assert (fault.row, fault.field) == (0, "x0")
    assert [f'"{name}" is' in fault.message for name in names] == [i < 5 for i in range(count)]


@pytest.mark.parametrize("length", [1, 9_999, 10_000, 10_001])
def test_an_id_in_a_fault_has_ten_thousand_characters(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "a.csv", f"a,id\nbad,{'i' * length}\n")
    (fault,) = read_all(path, CSV, [A], ["id"], "id").faults
    assert fault.id == "i" * min(length, 10_000)


def test_a_null_id_is_none(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [None, None], "id": pa.array([None, 7])}), tmp_path / "a.parquet")
    faults = read_all(tmp_path / "a.parquet", PARQUET, [A], ["id"], "id").faults
    assert [f.id for f in faults] == [None, "7"]


@pytest.mark.parametrize(
    ("arrow_type", "value", "text"),
    [
        (pa.timestamp("ns"), 1_700_000_000_123_456_789, "2023-11-14 22:13:20.123456789"),
        (pa.timestamp("us", "UTC"), 0, "1970-01-01 00:00:00.000000Z"),
        (pa.timestamp("s"), 1 << 40, "<value out of range: 1099511627776>"),
        (pa.date32(), 0, "1970-01-01"),
        (pa.duration("ns"), 5, "5"),
    ],
    ids=str,
)
def test_an_id_that_is_a_time_keeps_all_of_its_digits(
    tmp_path: Path, arrow_type: pa.DataType, value: int, text: str
) -> None:
    ids = pa.array([value], pa.int32() if arrow_type == pa.date32() else pa.int64()).view(arrow_type)
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink:
        table = pa.table({"a": pa.array([None], pa.float64()), "id": ids})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    (fault,) = read_all(tmp_path / "a.arrow", ARROW, [A], ["id"], "id").faults
    assert fault.id == text


@pytest.mark.parametrize(("rows", "length"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3)])
def test_the_head_has_as_many_rows_as_requested_at_most(tmp_path: Path, rows: int, length: int) -> None:
    dataset = reading.open_dataset(str(write(tmp_path / "a.csv", "a,n\n1,1\nbad,2\n3,3\n")), CSV)
    head = reading.read_head(dataset, [A], ["n"], "n", rows)
    assert head.length == length == len(head.rows) + len(head.faults)
    assert [f.row for f in head.faults] == ([1] if rows > 1 else [])
    assert head.extra.column(0).to_pylist() == [n for n in ("1", "3") if int(n) <= rows]


def test_the_head_of_a_file_without_rows_has_its_columns(tmp_path: Path) -> None:
    dataset = reading.open_dataset(str(write(tmp_path / "a.csv", "a,n\n")), CSV)
    head = reading.read_head(dataset, [A], ["n"], "n", 5)
    assert (head.length, len(head.rows), head.faults, head.extra.schema.names) == (0, 0, [], ["n"])


def test_rows_are_numbered_over_the_batches_of_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.formats.dataset.BATCH_ROWS", 2)
    rows = ["1,1", "x,2", "3", "4,4", "5,y", "6,6,6", "7,7"]
    dataset = reading.open_dataset(str(write(tmp_path / "a.csv", "a,n\n" + "\n".join(rows))), CSV)
    (part,) = reading.split(dataset)
    batches = [*reading.read_batches(dataset, part, [A, N], ["n"], "n")]
    assert [b.length for b in batches] == [2, 2, 2, 1]
    assert [[f.row for f in b.faults] for b in batches] == [[1], [2], [4, 5], []]
    assert [b.extra.column(0).to_pylist() for b in batches] == [["1"], ["4"], [], ["7"]]


def test_files_without_rows_are_left_out_unless_it_is_the_only_one(tmp_path: Path) -> None:
    empty, full = pa.table({"a": pa.array([], pa.float64())}), pa.table({"a": [1.0]})
    for name, table in (("0", empty), ("1", full), ("2", empty), ("3", full)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    dataset = reading.open_dataset(str(tmp_path), PARQUET)
    assert [file.name for file in dataset.files] == ["1.parquet", "3.parquet"]
    assert [(p.file, p.rows) for p in reading.split(dataset)] == [(0, 1), (1, 1)]
    for name in ("1", "3"):
        pq.write_table(empty, tmp_path / f"{name}.parquet")
    dataset = reading.open_dataset(str(tmp_path), PARQUET)
    assert [(p.file, p.rows) for p in reading.split(dataset)] == [(0, 0)]
    assert [(p.file, p.rows) for p in reading.split(dataset, lanes=2)] == [(0, 0)]


def test_an_empty_file_and_one_of_one_byte(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"the file 'a\.csv' is empty"):
        reading.open_dataset(str(write(tmp_path / "a.csv", "")), CSV)
    assert reading.open_dataset(str(write(tmp_path / "a.csv", "a")), CSV).columns == ("a",)


@pytest.mark.parametrize(
    ("media_type", "suffix", "rows", "empty"),
    [
        (CSV, ".csv", b"a\n1\n", [b"", b"\r\n", b"a\n", gzip.compress(b""), b"\xef\xbb\xbf"]),
        (NDJSON, ".json", b'{"a": 1}\n', [b"", b" \n\n", gzip.compress(b"\n")]),
        (PARQUET, ".parquet", None, [b""]),
        (ARROW, ".arrow", None, [b""]),
    ],
    ids=["csv", "json", "parquet", "arrow"],
)
def test_files_that_hold_nothing_have_no_rows(
    tmp_path: Path, media_type: str, suffix: str, rows: bytes | None, empty: list[bytes]
) -> None:
    for number, data in enumerate(empty):
        (tmp_path / f"{number}{suffix}").write_bytes(data)
    full = tmp_path / f"9{suffix}"
    if rows is not None:
        full.write_bytes(rows)
    elif media_type == PARQUET:
        pq.write_table(pa.table({"a": [1.0]}), full)
        pq.write_table(pa.table({}), tmp_path / "7.parquet")  # of pandas, for a table without rows
        pq.write_table(pa.table({"a": pa.array([], pa.string()), "b": []}), tmp_path / "8.parquet")
    else:
        with pa.OSFile(str(full), "wb") as sink, pa.ipc.new_file(sink, pa.schema({"a": "f8"})) as writer:
            writer.write_table(pa.table({"a": [1.0]}))
    assert read_all(tmp_path, media_type, [A]).columns == [[1.0]]
    dataset = reading.open_dataset(str(tmp_path), media_type)
    head = reading.read_head(dataset, [A], [], None, 5)
    assert (head.length, len(head.rows)) == (1, 1)


def test_files_that_are_all_empty_are_named(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.csv", "")
    with pytest.raises(
        Invalid, match=r"all 4 files of the input are empty: '0\.csv', '1\.csv', '2\.csv', \.\.\."
    ):
        reading.open_dataset(str(tmp_path), CSV)


def test_a_column_whose_name_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.0], "wxyz": ["x"]}), tmp_path / "1.parquet")
    with pa.OSFile(str(tmp_path / "1.arrow"), "wb") as sink:
        table = pa.table({"a": [1.0], "wxyz": ["x"]})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    for name, media_type in (("1.parquet", PARQUET), ("1.arrow", ARROW)):
        path = tmp_path / name
        path.write_bytes(path.read_bytes().replace(b"wxyz", b"\xff\xfeyz"))
        with pytest.raises(Invalid, match=r"'1\..*' has a column whose name is not valid UTF-8, .*yz"):
            reading.open_dataset(str(path), media_type)


def test_the_types_of_features_are_checked_in_every_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.0], "b": ["x"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": ["x"], "b": [1.0]}), tmp_path / "2.parquet")
    dataset = reading.open_dataset(str(tmp_path), PARQUET)
    assert dataset.columns == ("a", "b")
    with pytest.raises(Invalid, match=r"'2\.parquet': column \"a\" is of type string"):
        reading.open_dataset(str(tmp_path), PARQUET, features=[A])


def test_a_missing_column_inside_of_objects_is_named(tmp_path: Path) -> None:
    nested = {"order": [{"a": 1.5}]}
    pq.write_table(pa.table(nested), tmp_path / "1.parquet")
    write(tmp_path / "1.jsonl", '{"order": {"a": 1.5}}\n')
    for name, media_type in (("1.parquet", PARQUET), ("1.jsonl", NDJSON)):
        with pytest.raises(Invalid, match='column "a" is missing; it is inside of the column "order"'):
            read_all(tmp_path / name, media_type, [A])


def test_five_differing_columns_are_named(tmp_path: Path) -> None:
    write(tmp_path / "0.csv", "a\n1\n")
    write(tmp_path / "1.csv", "a," + ",".join(f"c{i}" for i in range(6)) + "\n1" + ",1" * 6 + "\n")
    with pytest.raises(Invalid) as caught:
        reading.open_dataset(str(tmp_path), CSV)
    assert [f'"c{i}"' in str(caught.value) for i in range(6)] == [True] * 5 + [False]
    assert [e.field for e in caught.value.errors] == [f"c{i}" for i in range(6)]


def test_similar_names_are_suggested_for_the_first_five_missing_columns(tmp_path: Path) -> None:
    names = [f"feature_{c}" for c in "abcdef"]
    path = write(tmp_path / "a.csv", ",".join(n.upper() for n in names) + "\n" + ",".join("1" * 6) + "\n")
    with pytest.raises(Invalid) as caught:
        read_all(path, CSV, [Column(Input(name, "float64")) for name in names])
    assert ["did you mean" in e.message for e in caught.value.errors] == [True] * 5 + [False]


@pytest.mark.parametrize(
    ("media_type", "text"), [(CSV, "x,n\n1,é\n"), (NDJSON, '{"x": 1, "n": "a"}\n{"x": 1, "n": "é"}\n')]
)
def test_a_training_names_a_file_that_is_not_utf8(tmp_path: Path, media_type: str, text: str) -> None:
    (tmp_path / "in").write_bytes(text.encode("latin-1"))
    dataset = reading.open_dataset(str(tmp_path / "in"), media_type, uniform=True)
    (part,) = reading.split(dataset)
    with pytest.raises(Invalid, match="'in' is not UTF-8, perhaps Latin-1 or Windows-1252; save the file as"):
        list(reading.read_record_batches(dataset, part, ["x", "n"]))
