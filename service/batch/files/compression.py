"""Compressed text, told by its first bytes: gzip, Zstandard, bzip2."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from service.batch.files.places import Opened

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
ENDINGS = ("", ".gz", ".zst", ".bz2")


def codec(opened: Opened) -> str | None:
    start = opened.read_at(0, 4)
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


def plain(opened: Opened) -> Any:
    """The file's bytes from the start, decompressed on the way if need be; `read` raises `OSError` when
    the compressed data is damaged or ends early."""
    opened.stream.seek(0)
    found = codec(opened)
    opened.stream.seek(0)
    return opened.stream if found is None else pa.CompressedInputStream(opened.arrow(), found)
