"""JSON lines: one object per line, any size; a part is a byte range between two lines.

An object is an instance of the online codec, but for keys that are no features: those are left out. Id
and passthrough columns become text: a string as it is, any other value as its JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from registry.errors import Invalid
from registry.rows import Rows
from service.batch.files import compression
from service.batch.files.cells import PLACEHOLDERS, Wrongs
from service.batch.files.dataset import Block, Dataset, File, Part, refuse
from service.batch.files.places import Opened, Stream
from service.batch.files.records import Records, blocks, ranges
from service.runtime.codec.columns import Column, Faults, rows_of, struct_of
from service.runtime.codec.json import JsonRows, read_json

SUFFIXES = tuple(f".{name}{end}" for name in ("jsonl", "ndjson", "json") for end in compression.ENDINGS)

_LINES = Records(quotes=False)
_SAMPLE_BYTES = 1 << 20
_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_BOM = b"\xef\xbb\xbf"


def schema(file: File) -> Any:
    """The keys of the first objects, with types as they suggest. Raises `Invalid` when there are none."""
    with Opened(file) as opened:
        sample = compression.plain(opened).read(_SAMPLE_BYTES).removeprefix(_BOM)
    found: dict[str, set[type]] = {}
    for line in (sample[: _LINES.end(sample)] or sample).split(b"\n"):
        if not line.strip():
            continue
        value = _object(line, file.name)
        for name, given in value.items():
            found.setdefault(name, set()).add(type(given))
    if not found:
        raise refuse(f"{file.name!r} has no rows, or rows without columns")
    return pa.schema([(name, _type(kinds)) for name, kinds in found.items()])


def _object(line: bytes, name: str) -> dict[str, Any]:
    try:
        value = read_json(line)
    except Invalid as error:
        raise refuse(f"{name!r} is not JSON lines: {error}", expected="one object per line") from error
    if not isinstance(value, dict):
        raise refuse(f"{name!r} is not JSON lines: a line is no object", expected="one object per line")
    return value


def _type(kinds: set[type]) -> Any:
    kinds = kinds - {type(None)}
    if kinds <= {bool} and kinds:
        return pa.bool_()
    if kinds <= {int} and kinds:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()


def cut(dataset: Dataset, index: int) -> list[Part]:
    """Ranges of about `PART_BYTES`, each up to a line's end."""
    file = dataset.files[index]
    with Opened(file) as opened:
        if compression.codec(opened) is not None:
            return [Part(index, 0, file.bytes)]
        return [Part(index, a, b) for a, b in ranges(opened, 0, b"\n")]


def read(opened: Opened, part: Part, columns: Sequence[Column], extra: Sequence[str]) -> Iterator[Block]:
    rows = _Lines(columns)
    for data in _blocks(opened, part):
        lines = [line for line in data.split(b"\n") if line.strip()]
        pieces: list[Rows] = []
        wrong: Wrongs = {}
        rows.take(lines, 0, pieces, wrong)
        yield Block(len(lines), _joined(pieces), _extra(lines, extra), None, wrong)


def _blocks(opened: Opened, part: Part) -> Iterator[bytes]:
    if compression.codec(opened) is None:
        stream: compression.Bytes = Stream(opened, part.start)
        size: int | None = part.stop - part.start
    else:
        stream, size = compression.plain(opened), None
    for index, data in enumerate(blocks(stream, size, _LINES, opened.file.name)):
        yield data.removeprefix(_BOM) if index == 0 and part.start == 0 else data


class _Lines:
    """Rows of lines: all at once, or where one is wrong in halves until it stands alone."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = columns
        self.rows = JsonRows(columns, max_instances=1)
        instance = struct_of(columns, strict=False)
        self.decoder = None if instance is None else msgspec.json.Decoder(instance)

    def take(self, lines: Sequence[bytes], start: int, pieces: list[Rows], wrong: Wrongs) -> None:
        rows = self._whole(lines)
        if rows is not None:
            pieces.append(rows)
        elif len(lines) == 1:
            pieces.append(self._walk(lines[0], start, wrong))
        else:
            half = len(lines) // 2
            self.take(lines[:half], start, pieces, wrong)
            self.take(lines[half:], start + half, pieces, wrong)

    def _whole(self, lines: Sequence[bytes]) -> Rows | None:
        if self.decoder is None:
            return None
        try:
            instances = self.decoder.decode_lines(b"\n".join(lines))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return self.rows.rows(instances) if len(instances) == len(lines) else None

    def _walk(self, line: bytes, index: int, wrong: Wrongs) -> Rows:
        """The row of one line; a placeholder when there is something wrong with it."""
        faults = Faults()
        values: list[list[Any]] = [[] for _ in self.columns]
        try:
            self.rows.walk(index, read_json(line), values, faults, strict=False)
        except Invalid as error:
            faults.add(f"the line is no JSON: {error}", index, None)
        if faults:
            wrong[index] = list(faults)
            values = [[PLACEHOLDERS[c.dtype]] for c in self.columns]
        arrays = [c.array(v) for c, v in zip(self.columns, values, strict=True)]
        return rows_of(self.columns, arrays, 1)


def _joined(pieces: list[Rows]) -> Rows:
    if len(pieces) == 1:
        return pieces[0]
    if pieces[0].matrix is not None:
        return Rows(matrix=np.concatenate([p.matrix for p in pieces]))
    columns = zip(*(p.columns for p in pieces if p.columns is not None), strict=True)
    return Rows(columns=tuple(np.concatenate(c) for c in columns))


def _extra(lines: Sequence[bytes], names: Sequence[str]) -> Any:
    fields = [pa.field(n, pa.string()) for n in names]
    if not names:
        return pa.RecordBatch.from_arrays([], schema=pa.schema([]))
    texts: list[list[str | None]] = [[] for _ in names]
    for line in lines:
        try:
            value = _RAW.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # a fault of the row already
            value = {}
        for name, into in zip(names, texts, strict=True):
            into.append(_text(value.get(name)))
    return pa.RecordBatch.from_arrays([pa.array(t, pa.string()) for t in texts], schema=pa.schema(fields))


def _text(raw: msgspec.Raw | None) -> str | None:
    text = None if raw is None else bytes(raw)
    if text is None or text == b"null":
        return None
    return str(msgspec.json.decode(text)) if text.startswith(b'"') else text.decode()
