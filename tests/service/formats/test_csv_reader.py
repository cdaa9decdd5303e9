from __future__ import annotations

import bz2
import gzip
import io
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.errors import Changed, Invalid
from registry.media_types import CSV
from registry.signature import Input
from service.formats import assembly, csv_reader, reading, sources, text_records
from service.formats import dataset as dataset_module
from service.formats.assembly import PartErrors
from service.formats.writing import ErrorWriter
from service.runtime.codec.columns import Column
from tests.service.formats.read_all import COLOUR, FLAG, WORD_COLUMN, A, B, N, read_all

Write = Callable[[bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(data: bytes) -> Path:
        path = tmp_path / "input.csv"
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limits, so that files of some hundred bytes have many parts, blocks and scans."""
    for name, size in (("PART_BYTES", 60), ("BLOCK_BYTES", 16), ("_SCAN_BYTES", 7)):
        monkeypatch.setattr(text_records, name, size)
    monkeypatch.setattr("service.formats.csv_reader.PART_BYTES", 60)


def test_ids_are_returned_as_written(write: Write) -> None:
    result = read_all(write(b"id,a,n,more\n007,1.5,2,x\n08,-2,3,y\n"), CSV, [N, A], ["id"], "id")
    assert result.columns == [[2, 3], [1.5, -2]]
    assert result.extra == {"id": ["007", "08"]}
    assert result.faults == []


@pytest.mark.parametrize("eol", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n\r\n"])
def test_byte_order_mark_line_ends_and_blank_lines_are_not_rows(
    write: Write, small_parts: None, eol: bytes, start: bytes
) -> None:
    rows = [b"%d,%d.5" % (i, i) for i in range(50)]
    text = eol.join([b"n,a", *rows[:20], b"", b"", *rows[20:]])
    for end in (b"", eol, eol + eol):
        result = read_all(write(start + text + end), CSV, [N, A])
        assert result.columns == [[*range(50)], [i + 0.5 for i in range(50)]]
        assert result.parts > 3


def test_a_file_is_divided_only_at_line_ends_outside_quotes(write: Write, small_parts: None) -> None:
    cells = [f'cell "{i}"\nsecond, line{"x" * (i % 7)}\r\n' for i in range(40)]
    body = "".join('{},"{}"\n'.format(i, c.replace('"', '""')) for i, c in enumerate(cells))
    result = read_all(write(b"n,word\n" + body.encode()), CSV, [N, WORD_COLUMN], ["word"])
    assert result.columns == [[*range(40)], cells]
    assert result.extra["word"] == cells
    assert result.parts > 5


def test_a_quote_inside_an_unquoted_cell_is_a_character(write: Write, small_parts: None) -> None:
    body = b"".join(b'%d,5" pipe %d\n%d,"two\nlines"\n' % (i, i, i + 1) for i in range(0, 40, 2))
    result = read_all(write(b"n,word\n" + body), CSV, [N, WORD_COLUMN])
    assert result.columns[0] == [*range(40)]
    assert result.columns[1][:2] == ['5" pipe 0', "two\nlines"]
    assert result.parts > 5


def test_parts_of_a_file_without_quotes_have_the_same_size(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_records, "PART_BYTES", 1000)
    monkeypatch.setattr("service.formats.csv_reader.PART_BYTES", 1000)
    dataset = reading.open_dataset(str(write(b"a\n" + b"0.25\n" * 2000)), CSV)
    parts = reading.split(dataset)
    assert {p.stop - p.start for p in parts[:-1]} <= set(range(1000, 1006))
    assert [p.start for p in parts[1:]] == [p.stop for p in parts[:-1]]
    assert (parts[0].start, parts[-1].stop) == (2, 10_002)


def test_empty_cells_and_nan_are_null_in_nullable_columns(write: Write) -> None:
    result = read_all(write(b"b,word,a\n,,1\nNaN,x,2\n-inf,y,3\n 4 ,z,4\n"), CSV, [B, WORD_COLUMN, A])
    assert [math.isnan(v) for v in result.columns[0]] == [True, True, False]
    assert result.columns[1:] == [[None, "x", "z"], [1, 2, 4]]
    (fault,) = result.faults  # infinity is not a missing value
    assert (fault.row, fault.field) == (2, "b")


def test_an_invalid_cell_is_a_fault_of_its_row_only(write: Write) -> None:
    lines = [b"%d,%d,red,true,k%d" % (i, i, i) for i in range(1000)]
    lines[3] = b",3,red,true,k3"
    lines[500] = b"500,5.5,red,1,k500"
    lines[501] = b"501,x,green,maybe,k501"
    lines[999] = b"1e999,999,blue,FALSE,k999"
    path = write(b"a,n,colour,flag,id\n" + b"\n".join(lines))
    result = read_all(path, CSV, [A, N, COLOUR, FLAG], ["id"], "id")
    assert [(f.row, f.id, f.field) for f in result.faults] == [
        (3, "k3", "a"), (500, "k500", "n"), (501, "k501", "n"), (999, "k999", "a"),
    ]  # fmt: skip
    assert result.faults[0].message.startswith('"a" is null')
    assert all(word in result.faults[2].message for word in ('"n" is', '"colour" is', '"flag" is'))
    assert result.extra["id"] == [f"k{i}" for i in range(1000) if i not in result.fault_rows]


def test_only_rows_of_another_type_are_faults_after_a_change_of_types(write: Write) -> None:
    rows = [b"%d" % i for i in range(5000)] + [b"n/a" if i % 2 else b"%d" % i for i in range(5000, 10_000)]
    result = read_all(write(b"a\n" + b"\n".join(rows)), CSV, [A])
    assert result.fault_rows == [i for i in range(5000, 10_000) if i % 2]
    assert result.columns == [[i for i in range(10_000) if i < 5000 or not i % 2]]


def test_a_wrong_number_of_cells_is_a_fault_of_its_row_only(write: Write) -> None:
    result = read_all(write(b"a,n\n1,1\n2\n\n3,3,3\n4,4\n,\n"), CSV, [A, N])
    assert result.columns == [[1, 4], [1, 4]]
    assert [(f.row, f.message) for f in result.faults[:2]] == [
        (1, "the row has 1 cells, the header has 2"),
        (2, "the row has 3 cells, the header has 2"),
    ]
    assert result.fault_rows == [1, 2, 4]


def test_invalid_utf8_is_a_fault_of_its_row_only(write: Write) -> None:
    path = write(b"word,id,more\nfine,1,\xff\n\xff\xfe,2,x\ngood,\xe4,x\nlast,\xc3\xa4,x\n")
    result = read_all(path, CSV, [WORD_COLUMN], ["id"], "id")
    assert result.columns == [["fine", "last"]]
    assert result.extra["id"] == ["1", "ä"]
    assert [(f.row, f.field) for f in result.faults] == [(1, "word"), (2, "id")]


@pytest.mark.parametrize("first", [b"", b"fine,0,y\n" * 9], ids=["first row", "later row"])
def test_a_short_row_with_invalid_utf8_is_a_fault_of_its_row_only(write: Write, first: bytes) -> None:
    """pyarrow raises an exception without the row number for such a row."""
    head, count = b"word,id,more\n" + first, first.count(b"\n")
    result = read_all(write(head + b"\xe4\ngood,\xe4,x\nlast,\xc3\xa4,x\n"), CSV, [WORD_COLUMN], ["id"], "id")
    assert result.columns == [["fine"] * count + ["last"]]
    assert result.extra["id"] == ["0"] * count + ["\u00e4"]
    assert [(f.row - count, f.field) for f in result.faults] == [(0, None), (1, "id")]
    result = read_all(write(b"a,id\n1.5,1\n\xff\nx,2\n2.5,3\n"), CSV, [A], ["id"], "id")
    assert (result.columns, result.fault_rows) == ([[1.5, 2.5]], [1, 2])


def test_text_that_starts_with_the_magic_of_bzip2_is_text(write: Write) -> None:
    assert read_all(write(b"BZh9,id\n1.5,1\n"), CSV, [Column(Input("BZh9", "float64"))]).columns == [[1.5]]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress], ids=["gz", "bz2"])
def test_compressed_files_are_one_part_regardless_of_their_name(
    write: Write, small_parts: None, pack: Callable[[bytes], bytes]
) -> None:
    body = b"a,n\n" + b"".join(b"%d.5,%d\n" % (i, i) for i in range(100))
    # several members, as concatenated gzip files have
    result = read_all(write(pack(body[:300]) + pack(body[300:])), CSV, [A, N])
    assert result.columns == [[i + 0.5 for i in range(100)], [*range(100)]]
    assert result.parts == 1


def test_damaged_compressed_files_are_rejected(write: Write) -> None:
    body = b"a,n\n" + b"".join(b"%d.5,%d\n" % (i, i * 7919) for i in range(200_000))
    packed = gzip.compress(body)
    with pytest.raises(Invalid, match="cannot be decompressed"):
        read_all(write(packed[: len(packed) // 2]), CSV, [A, N])
    with pytest.raises(Invalid, match="cannot be decompressed"):
        read_all(write(packed[:-5]), CSV, [A, N])


def test_a_file_with_only_a_header_has_no_rows(write: Write) -> None:
    for text in (b"a,n", b"a,n\n", b"\xef\xbb\xbfa,n\r\n\r\n"):
        result = read_all(write(text), CSV, [A, N], ["n"])
        assert (result.length, result.parts) == (0, 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"a,b,a\n1,2,3\n", 'column "a" more than once'),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        (b"\xff,b\n1,2\n", "header"),
        (b'a,b\n1,"2\n3,4\n', "inside a quoted cell"),
    ],
)
def test_invalid_csv_is_rejected_with_a_clear_message(write: Write, data: bytes, message: str) -> None:
    with pytest.raises(Invalid, match=message) as caught:
        read_all(write(data), CSV, [A, B])
    assert caught.value.errors


def test_missing_columns_are_named_and_columns_may_have_any_order(write: Write) -> None:
    path = write(b"n,x\n1,2\n")
    with pytest.raises(Invalid) as caught:
        read_all(path, CSV, [A, N, B], ["y"])
    assert [e.field for e in caught.value.errors] == ["a", "b", "y"]


def test_a_similar_column_name_is_suggested_for_a_missing_column(write: Write) -> None:
    path = write(b" A ,n,colours,x\n1,2,red,3\n")
    with pytest.raises(Invalid) as caught:
        read_all(path, CSV, [A, B, N, COLOUR])
    hints = [e.message.partition("; ")[2] for e in caught.value.errors]
    assert hints == ['did you mean " A "?', B.advice, 'did you mean "colours"?']


@pytest.mark.parametrize(("separator", "name"), [(b";", "semicolons"), (b"\t", "tabs")])
def test_another_separator_is_named_if_columns_are_missing(write: Write, separator: bytes, name: str) -> None:
    path = write(separator.join([b"a", b"n"]) + b"\n" + separator.join([b"1", b"2"]) + b"\n")
    with pytest.raises(Invalid, match=f"separated by {name}; write commas") as caught:
        read_all(path, CSV, [A, N])
    assert len(caught.value.errors) == 1


def test_the_only_column_may_have_a_semicolon_in_its_name(write: Write) -> None:
    column = Column(Input("a;n", "float64"))
    assert read_all(write(b"a;n\n1\n"), CSV, [column]).columns == [[1]]


def test_files_of_a_directory_are_read_by_name_with_any_column_order(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("n,a\n3,3.5\n")
    (tmp_path / "a.csv").write_text("a,n\n1.5,1\n2.5,2\n")
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"n,a\n4,4.5\n"))
    (tmp_path / ".notes.txt").write_text("no data")
    (tmp_path / "_SUCCESS").write_text("")
    result = read_all(tmp_path, CSV, [A, N], ["n"])
    assert result.columns == [[1.5, 2.5, 3.5, 4.5], [1, 2, 3, 4]]
    assert result.extra["n"] == ["1", "2", "3", "4"]
    (tmp_path / "d.csv").write_text("n,x\n4,4.5\n")
    with pytest.raises(Invalid, match="differ in the columns"):
        read_all(tmp_path, CSV, [A, N])


def test_a_directory_with_unreadable_entries_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="contains no files"):
        reading.open_dataset(str(tmp_path), CSV)
    (tmp_path / "a.csv").write_text("a\n1\n")
    for name in ("b.parquet", "b.csv.xz", "part-0002"):
        (tmp_path / name).write_text("a\n2\n")
        with pytest.raises(Invalid, match=f"{name!r} .* does not end with .csv, .*; move it out"):
            reading.open_dataset(str(tmp_path), CSV)
        (tmp_path / name).unlink()
    (tmp_path / "deeper").mkdir()
    with pytest.raises(Invalid, match="contains a directory"):
        reading.open_dataset(str(tmp_path), CSV)


def test_a_symbolic_link_in_a_directory_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a\n1\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").symlink_to(tmp_path / "secret")
    with pytest.raises(Invalid, match="not a regular file"):
        reading.open_dataset(str(tmp_path / "data"), CSV)


def test_a_file_that_changed_after_planning_is_not_read(write: Write) -> None:
    path = write(b"a\n" + b"1\n" * 100)
    dataset = reading.open_dataset(str(path), CSV)
    (part,) = reading.split(dataset)
    batches = reading.read_batches(dataset, part, [A], [], None)
    path.write_bytes(b"a\n" + b"2\n" * 101)
    with pytest.raises(Changed, match=r"input\.csv"):
        next(batches)
    path.unlink()
    with pytest.raises(Changed):
        next(reading.read_batches(dataset, part, [A], [], None))


def test_a_change_of_a_file_while_it_is_read_is_detected(write: Write) -> None:
    path = write(b"a\n" + b"1\n" * 100)
    dataset = reading.open_dataset(str(path), CSV)
    (part,) = reading.split(dataset)
    batches = reading.read_batches(dataset, part, [A], [], None)
    next(batches)
    with path.open("ab") as file:
        file.write(b"1\n")
    with pytest.raises(Changed):
        next(batches)


def test_a_batch_has_a_bounded_number_of_rows(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "BATCH_ROWS", 7)
    monkeypatch.setattr("tests.service.formats.read_all.BATCH_ROWS", 7)
    rows = [b"x,1" if i % 5 == 3 else b"1" if i % 6 == 2 else b"%d,2" % i for i in range(100)]
    result = read_all(write(b"a,b\n" + b"\n".join(rows)), CSV, [A, B], ["a"])
    assert result.fault_rows == [i for i in range(100) if i % 5 == 3 or i % 6 == 2]
    assert result.columns[0] == [i for i in range(100) if i not in result.fault_rows]


def test_a_record_above_the_limit_is_rejected_and_a_long_one_is_read(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_records, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(text_records, "MAX_RECORD_BYTES", 20_000)
    text = "y" * 15_000
    result = read_all(write(f"word,n\n{text},1\nb,2\n".encode()), CSV, [WORD_COLUMN, N])
    assert result.columns == [[text, "b"], [1, 2]]
    with pytest.raises(Invalid, match="longer than"):
        read_all(write(b"word,n\n" + b"y" * 30_000 + b",1\n"), CSV, [WORD_COLUMN, N])


def test_read_head_returns_rows_and_faults_of_the_first_rows(write: Write) -> None:
    dataset = reading.open_dataset(str(write(b"a,id\n1,x\nno,y\n3,z\n")), CSV)
    head = reading.read_head(dataset, [A], ["id"], "id", 2)
    assert (head.length, len(head.rows)) == (2, 1)
    assert [(f.row, f.id, f.field) for f in head.faults] == [(1, "y", "a")]
    assert reading.read_head(dataset, [A], [], None, 100).length == 3


def test_a_very_long_id_is_truncated_in_the_errors_file(write: Write, tmp_path: Path) -> None:
    result = read_all(write(b"a,id\n1,x\nno," + b"z" * 200_000 + b"\n"), CSV, [A], ["id"], "id")
    (fault,) = result.faults
    errors = ErrorWriter(tmp_path / "errors.csv")
    with errors:
        errors.write(fault)
        name = errors.close()
    out = io.BytesIO()
    assembly.assemble_errors([PartErrors(tmp_path / (name or ""), 0, "input.csv", 0)], out)
    assert out.getvalue().count(b"z" * 1000) > 0


def test_a_file_name_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff1.csv")).write_bytes(b"a\n1\n")
    with pytest.raises(Invalid, match="whose name is not valid UTF-8"):
        reading.open_dataset(str(tmp_path), CSV)


def spans(path: Path) -> list[tuple[int, int]]:
    return [(p.start, p.stop) for p in reading.split(reading.open_dataset(str(path), CSV))]


@pytest.mark.parametrize(
    ("part_bytes", "expected"),
    [(8, [(2, 10), (10, 18), (18, 22)]), (9, [(2, 14), (14, 22)]), (20, [(2, 22)]), (19, [(2, 22)])],
)
def test_a_part_of_a_file_with_quotes_ends_with_the_row_that_reaches_the_limit(
    write: Write, monkeypatch: pytest.MonkeyPatch, part_bytes: int, expected: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(text_records, "BLOCK_BYTES", 4)
    monkeypatch.setattr(csv_reader, "PART_BYTES", part_bytes)
    path = write(b"a\n" + b'"1"\n' * 5)
    assert spans(path) == expected
    assert read_all(path, CSV, [A]).columns == [[1.0] * 5]


@pytest.mark.parametrize(("part_bytes", "parts"), [(20, 1), (17, 2), (10, 2), (7, 3)])
def test_a_file_without_quotes_is_divided_beyond_the_limit(
    write: Write, monkeypatch: pytest.MonkeyPatch, part_bytes: int, parts: int
) -> None:
    for module in (text_records, csv_reader):
        monkeypatch.setattr(module, "PART_BYTES", part_bytes)
    path = write(b"a\n" + b"1\n" * 10)
    bounds = spans(path)
    assert len(bounds) == parts
    assert (bounds[0][0], bounds[-1][1]) == (2, 22)
    result = read_all(path, CSV, [A], ["a"])
    assert (result.columns, result.extra) == ([[1.0] * 10], {"a": ["1"] * 10})


@pytest.mark.parametrize("sample_bytes", [1, 2, 8, 9, 10, 13, 14, 100])
@pytest.mark.parametrize("header", [b"a,bb,ccc\n", b'"a","bb","cc\n"\n', b"\xef\xbb\xbfa,bb,ccc\r\n"])
def test_a_header_may_be_longer_than_the_sample(
    write: Write, monkeypatch: pytest.MonkeyPatch, sample_bytes: int, header: bytes
) -> None:
    if header.startswith(b"\xef") and sample_bytes < 4:
        return  # the sample holds the byte order mark
    monkeypatch.setattr(csv_reader, "_SAMPLE_BYTES", sample_bytes)
    path = write(header + b"1,2,3\n")
    dataset = reading.open_dataset(str(path), CSV)
    assert dataset.columns[:2] == ("a", "bb")
    assert spans(path) == [(len(header), len(header) + 6)]
    assert read_all(path, CSV, [A]).columns == [[1.0]]


def test_types_are_inferred_from_complete_rows_of_the_sample(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(b"a\n1\n2.5\nx\n")

    def type_with(sample_bytes: int) -> str:
        monkeypatch.setattr(csv_reader, "_SAMPLE_BYTES", sample_bytes)
        return str(csv_reader.read_schema(sources.list_files(str(path), ())[0]).field("a").type)

    assert [type_with(size) for size in (2, 5, 6, 7, 8, 100)] == [
        "int64", "int64", "double", "double", "string", "string",
    ]  # fmt: skip


def test_a_training_reads_missing_words_as_null_beside_numbers_and_as_text_elsewhere(write: Write) -> None:
    path = write(b"n,f,b,s,n2\n1,NA,true,NA,NA\nNA,1.5,None,,#N/A\nnull,nan,false,x,NaN\n")
    dataset = reading.open_dataset(str(path), CSV, uniform=True)
    (part,) = reading.split(dataset)
    (batch,) = reading.read_record_batches(dataset, part, list(dataset.columns))
    assert batch.to_pydict() | {"f": None} == {
        "n": [1, None, None],
        "f": None,
        "b": [True, None, False],
        "s": ["NA", None, "x"],
        "n2": ["NA", "#N/A", "NaN"],  # beside no number
    }
    assert batch.column("f").null_count == 2
    assert [str(t) for t in batch.schema.types] == ["int64", "double", "bool", "string", "string"]
