"""Compressed text, told by its first bytes: gzip, Zstandard, bzip2."""

from __future__ import annotations

import re
from typing import Any, Protocol

import pyarrow as pa

from service.formats.dataset import refuse
from service.formats.media_types import COMPRESSED
from service.formats.sources import Opened, Stream

_MAGIC = re.compile(
    rb"(?P<gzip>\x1f\x8b)|(?P<zstd>\x28\xb5\x2f\xfd)|(?P<bz2>BZh[1-9](?:1AY&SY|\x17rE8P\x90))"
)
"""bzip2's begins like text: behind it comes a block or the end."""
ENDINGS = ("", *COMPRESSED)


class Bytes(Protocol):
    def read(self, size: int, /) -> bytes: ...


def codec(opened: Opened) -> str | None:
    """The compression's name; None for plain text."""
    found = _MAGIC.match(opened.read_at(0, 10))
    return found and found.lastgroup


def plain(opened: Opened) -> Bytes:
    """The file's bytes from the start, decompressed on the way if need be; then `read` raises `Invalid`
    where the compressed data is damaged or ends early."""
    found = codec(opened)
    return Stream(opened) if found is None else _Decompressed(opened, found)


class _Decompressed:
    def __init__(self, opened: Opened, codec: str) -> None:
        self._opened = opened
        self._stream: Any = pa.CompressedInputStream(pa.PythonFile(Stream(opened), mode="r"), codec)

    def read(self, size: int) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except (OSError, pa.ArrowException) as error:
            self._opened.check()
            name = self._opened.file.name
            raise refuse(f"{name!r} cannot be decompressed; it is damaged or not whole: {error}") from error
