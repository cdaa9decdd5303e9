"""Text files at the limits of blocks, parts, scans and records."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from registry.errors import Invalid
from registry.media_types import CSV
from registry.signature import Input
from service.formats import sources, text_records
from service.formats.sources import FileStream, OpenedFile
from service.formats.text_records import (
    RecordFormat,
    byte_ranges,
    first_end,
    has_quotes,
    open_text,
    read_records,
)
from service.runtime.codec.columns import Column
from tests.service.formats.read_all import A, B, read_all


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[OpenedFile]:
    """A file of 30 bytes: ten lines of two digits."""
    path = tmp_path / "input.txt"
    path.write_bytes(b"".join(b"%02d\n" % n for n in range(10)))
    (file,) = sources.list_files(str(path), ())
    with OpenedFile(file) as file_opened:
        yield file_opened


@pytest.mark.parametrize("scan_bytes", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("part_bytes", "start", "bounds"),
    [
        (30, 0, [0, 30]),
        (29, 0, [0, 30]),  # the end of the line at byte 29
        (27, 0, [0, 30]),
        (26, 0, [0, 27, 30]),
        (15, 0, [0, 18, 30]),
        (14, 0, [0, 15, 30]),
        (27, 3, [3, 30]),
        (26, 3, [3, 30]),
        (12, 3, [3, 18, 30]),
        (3, 18, [18, 24, 30]),
        (5, 30, [30, 30]),
    ],
)
def test_ranges_of_a_file_end_with_the_line_at_the_limit(
    opened: OpenedFile,
    monkeypatch: pytest.MonkeyPatch,
    scan_bytes: int,
    part_bytes: int,
    start: int,
    bounds: list[int],
) -> None:
    monkeypatch.setattr(text_records, "PART_BYTES", part_bytes)
    monkeypatch.setattr(text_records, "_SCAN_BYTES", scan_bytes)
    assert byte_ranges(opened, start, b"\n") == [*pairwise(bounds)]


def test_a_last_line_without_an_end_is_part_of_the_last_range(
    opened: OpenedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_records, "PART_BYTES", 10)
    assert byte_ranges(opened, 0, b"x") == [(0, 30)]


@pytest.mark.parametrize("at", range(20))
def test_a_quote_is_noticed_at_every_position_of_a_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(text_records, "PART_BYTES", 10)
    monkeypatch.setattr(text_records, "_SCAN_BYTES", 4)
    path = tmp_path / "input.txt"
    path.write_bytes(b"x" * at + b'"' + b"y" * (19 - at))
    (file,) = sources.list_files(str(path), ())
    with OpenedFile(file) as file_opened:
        for start in {0, 1, 9, 10, 11, 19, at, at + 1}:
            assert has_quotes(file_opened, start) == (start <= at)


def blocks(text: bytes, size: int | None = None, form: RecordFormat | None = None) -> list[bytes]:
    return [*read_records(io.BytesIO(text), size, form or RecordFormat(), "input.csv")]


def test_a_block_ends_with_the_last_complete_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_records, "BLOCK_BYTES", 4)
    assert blocks(b"a\nbc\nd\n") == [b"a\n", b"bc\nd\n"]
    assert blocks(b"abc\ndef\n") == [b"abc\n", b"def\n"]
    assert blocks(b"abcd\nef") == [b"abcd\n", b"ef"]
    assert blocks(b'"a\n"\nb\nc\n') == [b'"a\n"\nb\n', b"c\n"]
    assert blocks(b"\n\n\n\n\n") == [b"\n\n\n\n", b"\n"]
    assert blocks(b"") == []


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("text", [b"a\nbc\n\ndef\n", b'a,"x\n"\n"b"\n"c\n\n"\n', b'5" a\n"b\nc"\nd\n'])
def test_only_the_bytes_of_the_part_are_read(
    monkeypatch: pytest.MonkeyPatch, block_bytes: int, text: bytes
) -> None:
    monkeypatch.setattr(text_records, "BLOCK_BYTES", block_bytes)
    assert b"".join(blocks(text)) == text
    for size in range(len(text)):
        if RecordFormat().last_end(text[:size]) == size:
            stream = io.BytesIO(text)
            assert b"".join(read_records(stream, size, RecordFormat(), "input.csv")) == text[:size]
            assert stream.tell() == size


@pytest.mark.parametrize("record", [b"x" * 8, b'"' + b"x" * 7])
def test_a_record_may_have_as_many_bytes_as_the_limit(monkeypatch: pytest.MonkeyPatch, record: bytes) -> None:
    monkeypatch.setattr(text_records, "BLOCK_BYTES", 4)
    monkeypatch.setattr(text_records, "MAX_RECORD_BYTES", 8)
    end = b'"\n' if record.startswith(b'"') else b"\n"
    assert blocks(record + end + b"y\n") == [record + end + b"y\n"]
    monkeypatch.setattr(text_records, "MAX_RECORD_BYTES", 7)
    with pytest.raises(Invalid, match=r"a record of 'input\.csv' is longer than 0 MB; check for a quote"):
        blocks(record + end + b"y\n")


def test_the_limit_of_a_record_is_64_mb() -> None:
    assert text_records.MAX_RECORD_BYTES == 64 * 2**20


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (b"", 0), (b"a", 0), (b"\n", 1), (b"a\nb", 2), (b'"\n', 0), (b'"\n"', 0), (b'"\n"\n', 4),
        (b'""\n', 3), (b'a"\nb\n', 5), (b'a"\n"b\n"\n', 8), (b'a,"\n",b\n"', 8), (b'"a""\n"\n"', 7),
        (b'"', 0), (b'a\n"b\n', 2), (b'"a"b"\nc\n', 8), (b'a\n"b"\n', 6), (b'"\n\n', 0),
    ],
)  # fmt: skip
def test_the_last_record_ends_outside_quotes(text: bytes, end: int) -> None:
    assert RecordFormat().last_end(text) == end


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (b"", 0), (b"a", 0), (b"a\nb\n", 2), (b"a\r\nb", 3), (b"a\rb", 2), (b'"a\n",b\nc', 7), (b'"a\n', 0),
        (b'5" x,y\nz', 7),
    ],
)  # fmt: skip
def test_the_first_record_ends_at_the_first_line_end_outside_quotes(text: bytes, end: int) -> None:
    assert first_end(text) == end


def test_a_text_is_open_only_inside_a_quoted_cell() -> None:
    form = RecordFormat()
    assert [form.is_open(t) for t in (b"", b"a", b'"a', b'"a"', b'"a""', b'a"', b'a,"')] == [
        False, False, True, False, True, False, True,
    ]  # fmt: skip
    assert not RecordFormat(quotes=False).is_open(b'"a')
    with pytest.raises(Invalid, match="ends inside a quoted cell"):
        blocks(b'a\n"b\n')
    assert blocks(b'a\n"b\n', form=RecordFormat(quotes=False)) == [b'a\n"b\n']


def test_ranges_of_an_opened_file_end_with_the_file(opened: OpenedFile) -> None:
    assert opened.read_at(27, 10) == b"09\n"
    assert (opened.read_at(30, 1), opened.read_at(0, 0)) == (b"", b"")
    stream = FileStream(opened, 3)
    assert (stream.tell(), stream.read(2), stream.tell()) == (3, b"01", 5)
    assert (stream.seek(-3, 2), stream.read()) == (27, b"09\n")
    assert (stream.seek(-30, 1), stream.read(None)) == (0, opened.read_at(0, 30))
    assert (stream.seek(4), stream.read(-1)) == (4, opened.read_at(4, 26))
    plain = open_text(opened)
    assert (plain.read(4), plain.read(100), plain.read(1)) == (b"00\n0", opened.read_at(4, 26), b"")


@pytest.mark.parametrize("block_bytes", [8, 16, 2**20])
@pytest.mark.parametrize(
    "cell", ["nan(1)", "NAN(x)", "-nan()", "1e400", "0x10", "1_000", "+", "infx", "1 2", "inf(1)"]
)
def test_a_cell_that_is_no_number_is_a_fault_in_every_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, cell: str
) -> None:
    """In the first block, which pyarrow reads, and in later ones, which may be read by the fast path."""
    monkeypatch.setattr(text_records, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "input.csv"
    lines = [cell if n in (1, 9, 19) else "" if n == 4 else str(n) for n in range(20)]
    path.write_text("b,x\n" + "".join(f"{line},0\n" for line in lines))
    result = read_all(path, CSV, [B], ["x"])
    assert result.fault_rows == [1, 9, 19]
    assert result.length == 20
    path.write_text("b,a\n" + "".join(f"{line},0\n" for line in lines))
    assert read_all(path, CSV, [B, A], ["b"]).fault_rows == [1, 9, 19]
    wide = Column(Input("b", "int64", nullable=True))
    assert read_all(path, CSV, [wide]).fault_rows == [1, 9, 19]


@pytest.mark.parametrize("block_bytes", [8, 2**20])
def test_integers_in_csv_files_are_exact_or_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(text_records, "BLOCK_BYTES", block_bytes)
    texts = ["9007199254740991", "9007199254740992", "9007199254740993", "-9007199254740993",
             "9223372036854775807", "-9223372036854775808", "9223372036854775808",
             "-9223372036854775809"]  # fmt: skip
    path = tmp_path / "input.csv"
    path.write_text("n,word\n" + "".join(f"{t},w\n" for t in texts))
    wide, word = Column(Input("n", "int64")), Column(Input("word", "string"))
    result = read_all(path, CSV, [wide, word], ["n"], "n")
    assert result.columns[0] == [int(t) for t in texts[:6]]
    assert result.extra["n"] == texts[:6]
    assert [(f.row, f.id) for f in result.faults] == [(6, texts[6]), (7, texts[7])]
    safe = Column(Input("n", "int64"), 2**53 - 1)
    assert read_all(path, CSV, [safe]).fault_rows == [*range(1, 8)]
