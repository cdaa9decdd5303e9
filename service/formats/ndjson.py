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
import pyarrow.json as pj

from registry.errors import FieldError, Invalid
from registry.rows import Rows
from service.formats import column_types as types
from service.formats import compression, media_types
from service.formats.cells import PLACEHOLDERS, Wrongs
from service.formats.dataset import Block, Dataset, File, FileRange, refuse
from service.formats.record_blocks import Records, blocks, ranges
from service.formats.sources import Opened, Stream
from service.runtime.codec.columns import Column, Faults, rows_of, struct_of
from service.runtime.codec.json import JsonRows, read_json

NAMES = (
    *media_types.SUFFIXES[media_types.LINES],
    ".json",
)  # the last alone does not tell: it may be one array
SUFFIXES = tuple(name + ending for name in NAMES for ending in compression.ENDINGS)

_LINES = Records(quotes=False)
_SAMPLE_BYTES = 1 << 20
_SAMPLE_ROWS = 1000
_REFUSALS = (msgspec.DecodeError, ValueError, RecursionError)  # UnicodeDecodeError is a ValueError
_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_BOM = b"\xef\xbb\xbf"


def schema(file: File) -> Any:
    """The keys of the first objects, with types as they suggest. Raises `Invalid` when there are none."""
    with Opened(file) as opened:
        sample = compression.plain(opened).read(_SAMPLE_BYTES).removeprefix(_BOM)
    lines = [line for line in (sample[: _LINES.end(sample)] or sample).split(b"\n") if line.strip()]
    found: dict[str, set[type]] = {}
    wrong: Invalid | None = None
    for line in lines[:_SAMPLE_ROWS]:
        try:
            value = read_json(line)
        except Invalid as error:  # a fault of the row, if others are well
            wrong = wrong or error
            continue
        for name, given in value.items() if isinstance(value, dict) else ():
            found.setdefault(name, set()).add(type(given))
    if not found:
        why = wrong or "there is no object with a key in its first lines"
        raise refuse(f"{file.name!r} is not JSON lines: {why}", expected="one object per line")
    return pa.schema([(name, _type(kinds)) for name, kinds in found.items()])


def _type(kinds: set[type]) -> Any:
    kinds = kinds - {type(None)}
    if not kinds:
        return pa.null()
    if kinds <= {bool}:
        return pa.bool_()
    if kinds <= {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()


def cut(dataset: Dataset, index: int) -> list[FileRange]:
    """Ranges of about `PART_BYTES`, each up to a line's end."""
    file = dataset.files[index]
    with Opened(file) as opened:
        if compression.codec(opened) is not None:
            return [FileRange(index, 0, file.bytes)]
        return [FileRange(index, a, b) for a, b in ranges(opened, 0, b"\n")]


def read(opened: Opened, part: FileRange, columns: Sequence[Column], extra: Sequence[str]) -> Iterator[Block]:
    rows, others = _Lines(columns), _Extra(extra)
    for data in _blocks(opened, part):
        lines = [line for line in data.split(b"\n") if line.strip()]
        if not lines:
            continue
        pieces: list[Rows] = []
        wrong: Wrongs = {}
        rows.take(lines, 0, pieces, wrong)
        yield Block(len(lines), _joined(pieces), others.batch(lines, wrong), None, wrong)


def tables(opened: Opened, part: FileRange, schema: Any) -> Iterator[Any]:
    """Record batches of the columns of `schema`; a key that a row lacks is null. Raises `Invalid` where a
    value is not of its type."""
    given = [f for f in schema if types.is_given(f)]
    others = pa.schema([f for f in schema if not types.is_given(f)])
    options = pj.ParseOptions(explicit_schema=others, unexpected_field_behavior="ignore")
    for data in _blocks(opened, part):
        whole = pj.ReadOptions(use_threads=False, block_size=len(data) + 1)
        try:
            table = pj.read_json(pa.BufferReader(data), whole, options) if len(others) else pa.table({})
        except pa.ArrowInvalid as error:
            told = f"{opened.file.name!r} is not like its first rows: {str(error)[:300]}"
            raise refuse(f"{told}; say what the column holds (dtypes, --dtype NAME=TYPE)") from error
        if given:
            table = _with(table, given, data, opened.file).select(schema.names)
        yield from table.combine_chunks().to_batches()


def _with(table: Any, given: Sequence[Any], data: bytes, file: File) -> Any:
    """The table, and beside its columns those whose types somebody gave, of text."""
    lines = [line for line in data.split(b"\n") if line.strip()]
    texts = _Extra([f.name for f in given]).batch(lines, {})
    columns = dict(zip(table.column_names, table.columns, strict=True))
    for field in given:
        try:
            columns[field.name] = texts.column(field.name).cast(field.type)
        except pa.ArrowException as error:
            message = f"column {field.name!r} of {file.name!r} is not all {field.type}: {str(error)[:300]}"
            raise refuse(message) from error
    return pa.table(columns)


def _blocks(opened: Opened, part: FileRange) -> Iterator[bytes]:
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
        except _REFUSALS:
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


class _Extra:
    """The columns that are handed on, as text: a string as it is, any other value as its JSON."""

    def __init__(self, names: Sequence[str]) -> None:
        self.schema = pa.schema([(name, pa.string()) for name in names])
        self.fields = [f"f{i}" for i in range(len(names))]
        self.decoder: msgspec.json.Decoder[Any] | None
        types = [(field, msgspec.Raw, msgspec.Raw(b"null")) for field in self.fields]
        try:
            rename = dict(zip(self.fields, names, strict=True))
            self.decoder = msgspec.json.Decoder(msgspec.defstruct("Extra", types, rename=rename, gc=False))
        except ValueError:  # a quote or a control character in a name
            self.decoder = None

    def batch(self, lines: Sequence[bytes], wrong: Wrongs) -> Any:
        if not self.fields:
            return pa.RecordBatch.from_arrays([], schema=self.schema)
        try:
            rows = self._whole(lines)
        except _REFUSALS:
            rows = [self._one(line, index, wrong) for index, line in enumerate(lines)]
        arrays = [pa.array(texts, pa.string()) for texts in zip(*rows, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _whole(self, lines: Sequence[bytes]) -> list[list[str | None]]:
        if self.decoder is None:
            raise ValueError("one by one")
        found = self.decoder.decode_lines(b"\n".join(lines))
        if len(found) != len(lines):
            raise ValueError("some lines hold several values")
        return [[_text(getattr(row, field)) for field in self.fields] for row in found]

    def _one(self, line: bytes, index: int, wrong: Wrongs) -> list[str | None]:
        try:
            value = _RAW.decode(line)
            return [_text(value.get(name)) for name in self.schema.names]
        except _REFUSALS as error:
            if index not in wrong:
                wrong[index] = [FieldError(f"the line is no JSON: {error}", index)]
            return [None] * len(self.fields)


def _text(raw: msgspec.Raw | None) -> str | None:
    text = None if raw is None else bytes(raw)
    if text is None or text == b"null":
        return None
    return str(msgspec.json.decode(text)) if text.startswith(b'"') else text.decode()
