"""Recognizes what an unreadable input is instead: an HTML page, a ZIP archive, a Git LFS pointer, ...

Only for messages, after reading has failed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from registry.media_types import ARROW, NDJSON, PARQUET


class FileKind(NamedTuple):
    start: re.Pattern[bytes]
    text: str  # completes "'orders.csv' is ..."
    media_type: str | None = None  # of the input, if a job reads the kind


_KINDS = (
    FileKind(re.compile(rb"PARE"), "an encrypted Parquet file; write it without encryption"),
    FileKind(re.compile(rb"PAR1"), "a Parquet file", PARQUET),
    FileKind(re.compile(rb"ARROW1|\xff{4}"), "an Arrow file or stream", ARROW),
    FileKind(re.compile(rb"FEA1"), "a Feather file of version 1; write version 2, which is Arrow"),
    FileKind(
        re.compile(rb"version https://git-lfs"), "a pointer of Git LFS, not the file; run `git lfs pull`"
    ),
    FileKind(re.compile(rb"\s*<(!doctype html|html|\?xml)", re.I), "an HTML or XML page; was it downloaded?"),
    FileKind(re.compile(rb"PK\x03\x04"), "a ZIP archive or an Excel workbook; write CSV or Parquet"),
    FileKind(re.compile(rb"\xd0\xcf\x11\xe0"), "an Excel workbook; write CSV or Parquet"),
    FileKind(re.compile(rb"SQLite format 3\0"), "a SQLite database; write CSV or Parquet"),
    FileKind(re.compile(rb"ORC"), "an ORC file; write Parquet"),
    FileKind(re.compile(rb"Obj\x01"), "an Avro file; write Parquet"),
    FileKind(re.compile(rb"\x89HDF"), "an HDF5 file; write Parquet"),
    FileKind(re.compile(rb"%PDF"), "a PDF document"),
    FileKind(re.compile(rb"\x80[\x02-\x05]"), "a pickle; write Parquet"),
    FileKind(re.compile(rb"7z\xbc\xaf|Rar!|\xfd7zXZ|\x1f\x9d|LZIP|\x04\x22\x4d\x18"), "a compressed archive"),
    FileKind(re.compile(rb"\x1f\x8b|\x28\xb5\x2f\xfd|BZh"), "a compressed file"),
    FileKind(re.compile(rb"\s*\["), "a JSON array; write one object per line (JSON lines)"),
    FileKind(re.compile(rb'\s*\{\s*"'), "JSON", NDJSON),
)
HEAD_BYTES = 64


def recognize(head: bytes, media_type: str) -> str | None:
    """Return what a file that starts with `head` is, if it is not of `media_type`."""
    for kind in _KINDS:
        if kind.start.match(head) is not None:
            if kind.media_type == media_type:
                return None
            return kind.text + (f"; set the media type {kind.media_type}" if kind.media_type else "")
    return None
