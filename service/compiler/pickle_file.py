"""Read a pickle or joblib file without unpickling it: decompressed blocks, and the versions it records.

The opcodes of a joblib file are interrupted by the raw bytes of its arrays, so they cannot be listed with
`pickletools`. The versions are found by the bytes with which pickle writes an attribute and its text.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

BLOCK_BYTES = 1 << 20  # a file is read in blocks of this size
OVERLAP = 96
"""Bytes of a block that are searched again with the next one: more than an attribute and its version take."""
MAX_VERSION_BYTES = 40
NUMPY_2_MODULE, NUMPY_1_MODULE = b"numpy._core.", b"numpy.core."
"""The name of numpy's module in pickles of arrays and numbers; version 2 renamed it."""
NUMPY_BOUNDS = (">=2", "<2")

DECOMPRESSION_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError)

_MEMO = rb"(?:\x94|q.|r....|p\d+)?\n?"  # after a text: of protocol 4 and later, 1 to 3, 0
_TEXT = rb"(?:\x8c(?P<byte>.)|X(?P<word>....)|V(?P<line>[^\n]*))"
_VERSION_ATTRIBUTE = re.compile(rb"_sklearn_version\n?" + _MEMO + _TEXT, re.DOTALL)

_OPENERS = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x5d\x00\x00": lzma.open,
}
_ZLIB = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")


def is_compressed(start: bytes) -> bool:
    """Whether the first bytes of a file are those of a compressor that joblib reads."""
    return start.startswith((*_OPENERS, *_ZLIB))


def blocks(path: Path | str) -> Iterator[bytes]:
    """The decompressed content of a file. Raises one of `DECOMPRESSION_ERRORS` when it is damaged."""
    with Path(path).open("rb") as file:
        start = file.read(6)
        file.seek(0)
        if start.startswith(_ZLIB):
            yield from _zlib_blocks(file)
            return
        opener = next((o for magic, o in _OPENERS.items() if start.startswith(magic)), None)
        if opener is None:
            yield from _read_blocks(file)
            return
        with opener(file, "rb") as decompressed:  # type: ignore[operator]
            yield from _read_blocks(decompressed)


def _read_blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block


def _zlib_blocks(file: IO[bytes]) -> Iterator[bytes]:
    decompressor = zlib.decompressobj()
    for compressed in _read_blocks(file):
        block = decompressor.decompress(compressed, BLOCK_BYTES)
        while block:
            yield block
            block = decompressor.decompress(decompressor.unconsumed_tail, BLOCK_BYTES)


def recorded_versions(path: Path | str) -> tuple[str | None, str | None]:
    """(scikit-learn's version, numpy's bound) as the file records them; None where it does not.

    Estimators record the version of scikit-learn that pickled them. Of numpy only ">=2" or "<2" is known.
    """
    sklearn: str | None = None
    numpy_1 = numpy_2 = False
    end = b""  # of the block before: a name may start in it
    try:
        for block in blocks(path):
            searched = end + block
            sklearn = sklearn or _sklearn_version(searched)
            numpy_2 = numpy_2 or NUMPY_2_MODULE in searched
            numpy_1 = numpy_1 or NUMPY_1_MODULE in searched
            end = searched[-OVERLAP:]
    except DECOMPRESSION_ERRORS:
        pass  # what was found before the damage
    return sklearn, ">=2" if numpy_2 else "<2" if numpy_1 else None


def _sklearn_version(searched: bytes) -> str | None:
    match = _VERSION_ATTRIBUTE.search(searched)
    if match is None:
        return None
    if match["line"] is not None:
        return match["line"].decode(errors="replace")
    length = int.from_bytes(match["byte"] or match["word"], "little")
    text = searched[match.end() : match.end() + length]
    return text.decode(errors="replace") if length == len(text) <= MAX_VERSION_BYTES else None
