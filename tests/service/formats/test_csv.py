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
from registry.signature import Input
from service.formats import assembly, reading, text_records
from service.formats import dataset as bounds
from service.formats.assembly import PartErrors
from service.formats.writing import ErrorWriter
from service.runtime.codec.columns import Column
from tests.service.formats.inputs import COLOUR, CSV, FLAG, WORD, A, B, N, everything

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
    """Files of some hundred bytes have many parts, blocks and scans then."""
    for name, size in (("PART_BYTES", 60), ("BLOCK_BYTES", 16), ("_SCAN_BYTES", 7)):
        monkeypatch.setattr(text_records, name, size)
    monkeypatch.setattr("service.formats.csv_reader.PART_BYTES", 60)


def test_a_table_comes_back_with_its_ids_as_written(write: Write) -> None:
    found = everything(write(b"id,a,n,more\n007,1.5,2,x\n08,-2,3,y\n"), CSV, [N, A], ["id"], "id")
    assert found.columns == [[2, 3], [1.5, -2]]
    assert found.extra == {"id": ["007", "08"]}
    assert found.faults == []


@pytest.mark.parametrize("eol", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n\r\n"])
def test_byte_order_mark_line_ends_and_blank_lines_are_no_rows(
    write: Write, small_parts: None, eol: bytes, start: bytes
) -> None:
    rows = [b"%d,%d.5" % (i, i) for i in range(50)]
    text = eol.join([b"n,a", *rows[:20], b"", b"", *rows[20:]])
    for end in (b"", eol, eol + eol):
        found = everything(write(start + text + end), CSV, [N, A])
        assert found.columns == [[*range(50)], [i + 0.5 for i in range(50)]]
        assert found.parts > 3


def test_a_file_is_cut_at_line_ends_outside_quotes_only(write: Write, small_parts: None) -> None:
    cells = [f'cell "{i}"\nsecond, line{"x" * (i % 7)}\r\n' for i in range(40)]
    body = "".join('{},"{}"\n'.format(i, c.replace('"', '""')) for i, c in enumerate(cells))
    found = everything(write(b"n,word\n" + body.encode()), CSV, [N, WORD], ["word"])
    assert found.columns == [[*range(40)], cells]
    assert found.extra["word"] == cells
    assert found.parts > 5


def test_a_quote_inside_an_unquoted_cell_is_a_character(write: Write, small_parts: None) -> None:
    body = b"".join(b'%d,5" pipe %d\n%d,"two\nlines"\n' % (i, i, i + 1) for i in range(0, 40, 2))
    found = everything(write(b"n,word\n" + body), CSV, [N, WORD])
    assert found.columns[0] == [*range(40)]
    assert found.columns[1][:2] == ['5" pipe 0', "two\nlines"]
    assert found.parts > 5


def test_a_file_without_quotes_has_even_parts(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_records, "PART_BYTES", 1000)
    monkeypatch.setattr("service.formats.csv_reader.PART_BYTES", 1000)
    dataset = reading.open_dataset(str(write(b"a\n" + b"0.25\n" * 2000)), CSV)
    parts = reading.split(dataset)
    assert {p.stop - p.start for p in parts[:-1]} <= set(range(1000, 1006))
    assert [p.start for p in parts[1:]] == [p.stop for p in parts[:-1]]
    assert (parts[0].start, parts[-1].stop) == (2, 10_002)


def test_the_empty_cell_and_nan_are_null_where_null_is_taken(write: Write) -> None:
    found = everything(write(b"b,word,a\n,,1\nNaN,x,2\n-inf,y,3\n 4 ,z,4\n"), CSV, [B, WORD, A])
    assert [math.isnan(v) for v in found.columns[0]] == [True, True, True, False]
    assert found.columns[1:] == [[None, "x", "y", "z"], [1, 2, 3, 4]]


def test_a_bad_cell_is_the_fault_of_its_row_alone(write: Write) -> None:
    lines = [b"%d,%d,red,true,k%d" % (i, i, i) for i in range(1000)]
    lines[3] = b",3,red,true,k3"
    lines[500] = b"500,5.5,red,1,k500"
    lines[501] = b"501,x,green,maybe,k501"
    lines[999] = b"1e999,999,blue,FALSE,k999"
    path = write(b"a,n,colour,flag,id\n" + b"\n".join(lines))
    found = everything(path, CSV, [A, N, COLOUR, FLAG], ["id"], "id")
    assert [(f.row, f.id, f.field) for f in found.faults] == [
        (3, "k3", "a"), (500, "k500", "n"), (501, "k501", "n"), (999, "k999", "a"),
    ]  # fmt: skip
    assert found.faults[0].message.startswith('"a" is null')
    assert all(word in found.faults[2].message for word in ('"n" is', '"colour" is', '"flag" is'))
    assert found.extra["id"] == [f"k{i}" for i in range(1000) if i not in found.bad]


def test_types_that_change_halfway_cost_only_the_rows_that_do_not_fit(write: Write) -> None:
    rows = [b"%d" % i for i in range(5000)] + [b"n/a" if i % 2 else b"%d" % i for i in range(5000, 10_000)]
    found = everything(write(b"a\n" + b"\n".join(rows)), CSV, [A])
    assert found.bad == [i for i in range(5000, 10_000) if i % 2]
    assert found.columns == [[i for i in range(10_000) if i < 5000 or not i % 2]]


def test_a_wrong_number_of_cells_is_the_fault_of_its_row_alone(write: Write) -> None:
    found = everything(write(b"a,n\n1,1\n2\n\n3,3,3\n4,4\n,\n"), CSV, [A, N])
    assert found.columns == [[1, 4], [1, 4]]
    assert [(f.row, f.message) for f in found.faults[:2]] == [
        (1, "the row has 1 cells, the header has 2"),
        (2, "the row has 3 cells, the header has 2"),
    ]
    assert found.bad == [1, 2, 4]


def test_bytes_that_are_no_utf8_are_the_fault_of_their_row_alone(write: Write) -> None:
    path = write(b"word,id,more\nfine,1,\xff\n\xff\xfe,2,x\ngood,\xe4,x\nlast,\xc3\xa4,x\n")
    found = everything(path, CSV, [WORD], ["id"], "id")
    assert found.columns == [["fine", "last"]]
    assert found.extra["id"] == ["1", "ä"]
    assert [(f.row, f.field) for f in found.faults] == [(1, "word"), (2, "id")]


@pytest.mark.parametrize("first", [b"", b"fine,0,y\n" * 9], ids=["at first", "later"])
def test_a_row_of_too_few_cells_that_are_no_utf8_is_the_fault_of_that_row_alone(
    write: Write, first: bytes
) -> None:
    """pyarrow says nothing of it but an exception of its own."""
    head, count = b"word,id,more\n" + first, first.count(b"\n")
    found = everything(write(head + b"\xe4\ngood,\xe4,x\nlast,\xc3\xa4,x\n"), CSV, [WORD], ["id"], "id")
    assert found.columns == [["fine"] * count + ["last"]]
    assert found.extra["id"] == ["0"] * count + ["\u00e4"]
    assert [(f.row - count, f.field) for f in found.faults] == [(0, None), (1, "id")]
    found = everything(write(b"a,id\n1.5,1\n\xff\nx,2\n2.5,3\n"), CSV, [A], ["id"], "id")
    assert (found.columns, found.bad) == ([[1.5, 2.5]], [1, 2])


def test_text_that_begins_as_bzip2_does_is_text(write: Write) -> None:
    assert everything(write(b"BZh9,id\n1.5,1\n"), CSV, [Column(Input("BZh9", "float64"))]).columns == [[1.5]]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress], ids=["gz", "bz2"])
def test_compressed_files_are_read_as_one_part_whatever_their_name(
    write: Write, small_parts: None, pack: Callable[[bytes], bytes]
) -> None:
    body = b"a,n\n" + b"".join(b"%d.5,%d\n" % (i, i) for i in range(100))
    # several members one after another, as `cat` of two files has
    found = everything(write(pack(body[:300]) + pack(body[300:])), CSV, [A, N])
    assert found.columns == [[i + 0.5 for i in range(100)], [*range(100)]]
    assert found.parts == 1


def test_damaged_compression_is_never_a_shorter_input(write: Write) -> None:
    body = b"a,n\n" + b"".join(b"%d.5,%d\n" % (i, i * 7919) for i in range(200_000))
    packed = gzip.compress(body)
    with pytest.raises(Invalid, match="cannot be decompressed"):
        everything(write(packed[: len(packed) // 2]), CSV, [A, N])
    with pytest.raises(Invalid, match="cannot be decompressed"):
        everything(write(packed[:-5]), CSV, [A, N])


def test_the_header_alone_is_a_table_without_rows(write: Write) -> None:
    for text in (b"a,n", b"a,n\n", b"\xef\xbb\xbfa,n\r\n\r\n"):
        found = everything(write(text), CSV, [A, N], ["n"])
        assert (found.length, found.parts) == (0, 1)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\n\n", "no header"),
        (b"a,b,a\n1,2,3\n", 'column "a" more than once'),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        (b"\xff,b\n1,2\n", "header"),
        (b'a,b\n1,"2\n3,4\n', "inside a quoted cell"),
    ],
)
def test_what_is_no_csv_is_refused_in_plain_words(write: Write, data: bytes, says: str) -> None:
    with pytest.raises(Invalid, match=says) as refused:
        everything(write(data), CSV, [A, B])
    assert refused.value.errors


def test_a_missing_column_is_named_and_a_new_order_is_fine(write: Write) -> None:
    path = write(b"n,x\n1,2\n")
    with pytest.raises(Invalid) as refused:
        everything(path, CSV, [A, N, B], ["y"])
    assert [e.field for e in refused.value.errors] == ["a", "b", "y"]


def test_a_missing_column_with_a_close_name_in_the_input_is_asked_about(write: Write) -> None:
    path = write(b" A ,n,colours,x\n1,2,red,3\n")
    with pytest.raises(Invalid) as refused:
        everything(path, CSV, [A, B, N, COLOUR])
    hints = [e.message.partition("; ")[2] for e in refused.value.errors]
    assert hints == ['did you mean " A "?', B.advice, 'did you mean "colours"?']


@pytest.mark.parametrize(("mark", "name"), [(b";", "semicolons"), (b"\t", "tabs")])
def test_another_separator_is_named_where_columns_are_missing(write: Write, mark: bytes, name: str) -> None:
    path = write(mark.join([b"a", b"n"]) + b"\n" + mark.join([b"1", b"2"]) + b"\n")
    with pytest.raises(Invalid, match=f"separated by {name}; write commas") as refused:
        everything(path, CSV, [A, N])
    assert len(refused.value.errors) == 1


def test_a_semicolon_in_the_name_of_the_only_column_is_fine(write: Write) -> None:
    odd = Column(Input("a;n", "float64"))
    assert everything(write(b"a;n\n1\n"), CSV, [odd]).columns == [[1]]


def test_a_directory_is_all_its_tables_by_name_each_in_its_own_order(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("n,a\n3,3.5\n")
    (tmp_path / "a.csv").write_text("a,n\n1.5,1\n2.5,2\n")
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"n,a\n4,4.5\n"))
    (tmp_path / ".notes.txt").write_text("no data")
    (tmp_path / "_SUCCESS").write_text("")
    found = everything(tmp_path, CSV, [A, N], ["n"])
    assert found.columns == [[1.5, 2.5, 3.5, 4.5], [1, 2, 3, 4]]
    assert found.extra["n"] == ["1", "2", "3", "4"]
    (tmp_path / "d.csv").write_text("n,x\n4,4.5\n")
    with pytest.raises(Invalid, match="differ in the columns"):
        everything(tmp_path, CSV, [A, N])


def test_nothing_in_a_directory_is_silently_left_out(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="contains no files"):
        reading.open_dataset(str(tmp_path), CSV)
    (tmp_path / "a.csv").write_text("a\n1\n")
    for name in ("b.parquet", "b.csv.xz", "part-0002"):
        (tmp_path / name).write_text("a\n2\n")
        with pytest.raises(Invalid, match=f"{name!r} .* does not end with .csv, .*; move it out"):
            reading.open_dataset(str(tmp_path), CSV)
        (tmp_path / name).unlink()
    (tmp_path / "year=2024").mkdir()
    with pytest.raises(Invalid, match="contains a directory"):
        reading.open_dataset(str(tmp_path), CSV)


def test_a_link_in_a_directory_is_not_followed(tmp_path: Path) -> None:
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


def test_a_file_that_changes_under_its_reader_is_noticed(write: Write) -> None:
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
    monkeypatch.setattr(bounds, "BATCH_ROWS", 7)
    monkeypatch.setattr("tests.service.formats.inputs.BATCH_ROWS", 7)
    rows = [b"x,1" if i % 5 == 3 else b"1" if i % 6 == 2 else b"%d,2" % i for i in range(100)]
    found = everything(write(b"a,b\n" + b"\n".join(rows)), CSV, [A, B], ["a"])
    assert found.bad == [i for i in range(100) if i % 5 == 3 or i % 6 == 2]
    assert found.columns[0] == [i for i in range(100) if i not in found.bad]


def test_one_very_long_record_is_refused_and_a_long_one_is_read(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_records, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(text_records, "MAX_RECORD_BYTES", 20_000)
    text = "y" * 15_000
    found = everything(write(f"word,n\n{text},1\nb,2\n".encode()), CSV, [WORD, N])
    assert found.columns == [[text, "b"], [1, 2]]
    with pytest.raises(Invalid, match="longer than"):
        everything(write(b"word,n\n" + b"y" * 30_000 + b",1\n"), CSV, [WORD, N])


def test_the_first_rows_tell_whether_a_job_can_be_done(write: Write) -> None:
    dataset = reading.open_dataset(str(write(b"a,id\n1,x\nno,y\n3,z\n")), CSV)
    head = reading.read_head(dataset, [A], ["id"], "id", 2)
    assert (head.length, len(head.rows)) == (2, 1)
    assert [(f.row, f.id, f.field) for f in head.faults] == [(1, "y", "a")]
    assert reading.read_head(dataset, [A], [], None, 100).length == 3


def test_an_id_of_any_length_is_the_fault_of_nothing_but_its_row(write: Write, tmp_path: Path) -> None:
    found = everything(write(b"a,id\n1,x\nno," + b"z" * 200_000 + b"\n"), CSV, [A], ["id"], "id")
    (fault,) = found.faults
    errors = ErrorWriter(tmp_path / "errors.csv")
    with errors:
        errors.write(fault)
        made = errors.close()
    sink = io.BytesIO()
    assembly.assemble_errors([PartErrors(tmp_path / (made or ""), 0, "input.csv", 0)], sink)
    assert sink.getvalue().count(b"z" * 1000) > 0


def test_a_file_whose_name_is_no_utf8_is_refused_by_name(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff1.csv")).write_bytes(b"a\n1\n")
    with pytest.raises(Invalid, match="whose name is not valid UTF-8"):
        reading.open_dataset(str(tmp_path), CSV)
