"""Joined outputs and errors files: headers, chunks and the numbers of rows."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from registry.media_types import CSV, NDJSON
from service.formats import assembly
from service.formats.assembly import PartErrors


def joined(directory: Path, media_type: str, *parts: bytes) -> bytes:
    paths = [directory / f"part-{number}" for number in range(len(parts))]
    for path, data in zip(paths, parts, strict=True):
        path.write_bytes(data)
    out = io.BytesIO()
    assembly.assemble(paths, media_type, out)
    return out.getvalue()


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 4, 5, 8, 100])
def test_only_the_first_header_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    """Also where a header is as long as a chunk or longer, and may contain a line end."""
    monkeypatch.setattr(assembly, "CHUNK_BYTES", chunk_bytes)
    head = b'"a\n",b\n'
    assert joined(tmp_path, CSV, head + b"1,2\n", head + b"3,4\n", head + b"5,6\n") == (
        head + b"1,2\n3,4\n5,6\n"
    )
    assert joined(tmp_path, CSV, head, head + b"3,4\n", head) == head + b"3,4\n"
    assert joined(tmp_path, CSV, head + b"1,2\n") == head + b"1,2\n"
    assert joined(tmp_path, CSV, head + b"1,2\n", b"no line end") == head + b"1,2\n"


def test_lines_of_json_have_no_header(tmp_path: Path) -> None:
    assert joined(tmp_path, NDJSON, b'{"a":1}\n', b"", b'{"a":2}\n') == b'{"a":1}\n{"a":2}\n'


def test_errors_are_numbered_by_the_first_row_of_their_part(tmp_path: Path) -> None:
    parts = []
    for name, first, first_in_file, rows in (("a", 0, 0, (0, 1)), ("b", 2, 0, (0,)), ("c", 3, 1, (0, 9))):
        path = tmp_path / name
        lines = "".join(f"{row},id{row},x,bad\r\n" for row in rows)
        path.write_text(f"row,id,field,message\r\n{lines}", newline="")
        parts.append(PartErrors(path, first, f"{name}.csv", first_in_file))
    out = io.BytesIO()
    assembly.assemble_errors(parts, out)
    header, *rows_read = csv.reader(io.StringIO(out.getvalue().decode(), newline=""))
    assert header == ["row", "id", "field", "message", "file", "file_row"]
    assert [(r[0], r[4], r[5]) for r in rows_read] == [
        ("0", "a.csv", "0"),
        ("1", "a.csv", "1"),
        ("2", "b.csv", "0"),
        ("3", "c.csv", "1"),
        ("12", "c.csv", "10"),
    ]
    empty = io.BytesIO()
    assembly.assemble_errors([], empty)
    assert empty.getvalue() == b"row,id,field,message,file,file_row\r\n"
