"""JSON lines input: one object per line, of any size. A part is a byte range between two lines.

An object is an instance of the online codec, except that keys that are not features are ignored, unless they
are repeated. Id and passthrough columns become text: a string as it is, any other value as its JSON.
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
from service.formats import column_types
from service.formats.cells import PLACEHOLDERS, CellFaults
from service.formats.dataset import Block, Dataset, FileRange, InputFile, invalid_input
from service.formats.sources import FileStream, OpenedFile
from service.formats.text_records import (
    ByteStream,
    RecordFormat,
    byte_ranges,
    compression_of,
    is_utf8,
    not_utf8,
    open_text,
    read_records,
)
from service.runtime.codec.columns import (
    Column,
    Faults,
    escape_surrogates,
    instance_struct,
    rows_of,
    show,
)
from service.runtime.codec.json import JsonRows, NonFiniteLiteral, RepeatedKey, read_json

_LINES = RecordFormat(quotes=False)
_SAMPLE_BYTES = 1 << 20
_SAMPLE_ROWS = 1000
_NESTED = pa.list_(pa.null())
_DECODE_ERRORS = (msgspec.DecodeError, ValueError, RecursionError)  # UnicodeDecodeError is a ValueError
_RAW_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_BOM = b"\xef\xbb\xbf"


def read_schema(file: InputFile) -> Any:
    """Return the keys of the first objects, with types inferred from their values.

    Raises `Invalid` if the first lines contain no object with a key.
    """
    with OpenedFile(file) as opened:
        sample = open_text(opened).read(_SAMPLE_BYTES)
    lines = _split_lines(_LINES.complete_records(sample, _SAMPLE_BYTES).removeprefix(_BOM))
    types: dict[str, set[type]] = {}
    first_error: Invalid | None = None
    for line in lines[:_SAMPLE_ROWS]:
        try:
            value = read_json(line)
        except Invalid as error:  # a fault of that row, if other lines are valid
            first_error = first_error or error
            continue
        for key, item in value.items() if isinstance(value, dict) else ():
            types.setdefault(key, set()).add(type(item))
    if not types:
        if not is_utf8(b"\n".join(lines)):
            raise not_utf8(file.name)
        reason = first_error or "its first lines contain no object with a key"
        raise invalid_input(f"{file.name!r} is not JSON lines: {reason}", expected="one object per line")
    if invalid := next((key for key in types if escape_surrogates(key) != key), None):
        message = f"{file.name!r} has a key that is not valid Unicode, {show(invalid)}; rename it"
        raise invalid_input(message, expected="UTF-8")
    return pa.schema([(key, _arrow_type(value_types)) for key, value_types in types.items()])


def _split_lines(data: bytes) -> list[bytes]:
    return [line for line in data.split(b"\n") if line.strip()]


def _arrow_type(types: set[type]) -> Any:
    types = types - {type(None), NonFiniteLiteral}
    if not types.isdisjoint((dict, RepeatedKey, list)):
        return _NESTED  # text in an id or passthrough column, refused as a feature of a training
    if not types:
        return pa.null()
    if types <= {bool}:
        return pa.bool_()
    if types <= {int}:
        return pa.int64()
    return pa.float64() if types <= {int, float} else pa.string()


def split_file(dataset: Dataset, index: int) -> list[FileRange]:
    """Divide the file into ranges of about `PART_BYTES` that end with a line."""
    file = dataset.files[index]
    with OpenedFile(file) as opened:
        if compression_of(opened) is not None:
            return [FileRange(index, 0, file.bytes)]
        return [FileRange(index, start, stop) for start, stop in byte_ranges(opened, 0, b"\n")]


def read_blocks(
    opened: OpenedFile, part: FileRange, columns: Sequence[Column], extra: Sequence[str]
) -> Iterator[Block]:
    """Yield the part's rows; `extra` names the id and passthrough columns."""
    features, texts = _FeatureDecoder(columns), _TextDecoder(extra)
    for data in _read_part(opened, part):
        lines = _split_lines(data)
        if not lines:
            continue
        pieces: list[Rows] = []
        faults: CellFaults = {}
        features.decode(lines, 0, pieces, faults)
        batch = texts.decode(lines, faults)
        yield Block(len(lines), _concatenate(pieces), batch, cell_faults=faults)


def read_record_batches(opened: OpenedFile, part: FileRange, schema: Any) -> Iterator[Any]:
    """Yield Arrow record batches with the columns of `schema`. A key that a row lacks is null.

    Raises `Invalid` if a value does not have its column's type.
    """
    explicit = [f for f in schema if column_types.is_explicit(f)]
    inferred = pa.schema([f for f in schema if not column_types.is_explicit(f)])
    options = pj.ParseOptions(explicit_schema=inferred, unexpected_field_behavior="ignore")
    for data in _read_part(opened, part):
        _require_plain_json(data, opened.file.name)
        one_block = pj.ReadOptions(use_threads=False, block_size=len(data) + 1)
        try:
            table = pj.read_json(pa.BufferReader(data), one_block, options) if len(inferred) else pa.table({})
        except pa.ArrowInvalid as error:
            message = f"{opened.file.name!r} does not match its first rows: {str(error)[:300]}"
            raise invalid_input(f"{message}; {column_types.SET_DTYPE_HINT}") from error
        if explicit:
            table = _add_columns(table, explicit, data, opened.file).select(schema.names)
        yield from table.combine_chunks().to_batches()


def _require_plain_json(data: bytes, file: str) -> None:
    """Raise `Invalid` for bytes that are not UTF-8, repeated keys and NaN, all of which pyarrow accepts."""
    if not is_utf8(data):
        raise not_utf8(file)
    if b"NaN" not in data and b"Infinity" not in data:
        try:
            if JsonRows.has_keys(data, sum(map(len, _RAW_OBJECT.decode_lines(data)))):
                return
        except _DECODE_ERRORS:
            pass
    for line in _split_lines(data):
        try:
            value = read_json(line)
        except Invalid as error:
            raise invalid_input(f"a line of {file!r} is not valid JSON: {error}") from error
        if isinstance(value, RepeatedKey):
            raise invalid_input(f"a line of {file!r} repeats the key {show(value.key)}; write it once")
        for key, item in value.items() if isinstance(value, dict) else ():
            if isinstance(item, NonFiniteLiteral):
                message = f"column {show(key)} of {file!r} holds {item.text}, which is not valid JSON"
                raise invalid_input(f"{message}; write null for a missing value")


def _add_columns(table: Any, fields: Sequence[Any], data: bytes, file: InputFile) -> Any:
    """Add the columns whose types the user set. They are read as text and converted."""
    texts = _TextDecoder([f.name for f in fields]).decode(_split_lines(data), {})
    columns = dict(zip(table.column_names, table.columns, strict=True))
    for field in fields:
        try:
            columns[field.name] = texts.column(field.name).cast(field.type)
        except pa.ArrowException as error:
            reason = str(error)[:300]
            message = f"column {field.name!r} of {file.name!r} cannot be converted to {field.type}: {reason}"
            raise invalid_input(message) from error
    return pa.table(columns)


def _read_part(opened: OpenedFile, part: FileRange) -> Iterator[bytes]:
    if compression_of(opened) is None:
        stream: ByteStream = FileStream(opened, part.start)
        size: int | None = part.stop - part.start
    else:
        stream, size = open_text(opened), None
    for index, data in enumerate(read_records(stream, size, _LINES, opened.file.name)):
        yield data.removeprefix(_BOM) if index == 0 and part.start == 0 else data


class _FeatureDecoder:
    """Decodes lines to rows: all at once, or in halves until each invalid line is isolated."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = columns
        self.codec = JsonRows(columns, max_instances=1)
        self.decoder, self.strict_decoder = (
            None if instance is None else msgspec.json.Decoder(instance)
            for instance in (instance_struct(columns, strict=False), instance_struct(columns))
        )

    def decode(self, lines: Sequence[bytes], start: int, pieces: list[Rows], faults: CellFaults) -> None:
        """Append the rows of `lines`, the first of which is row `start`, to `pieces`."""
        rows = self._decode_all(lines)
        if rows is not None:
            pieces.append(rows)
        elif len(lines) == 1:
            pieces.append(self._decode_one(lines[0], start, faults))
        else:
            half = len(lines) // 2
            self.decode(lines[:half], start, pieces, faults)
            self.decode(lines[half:], start + half, pieces, faults)

    def _decode_all(self, lines: Sequence[bytes]) -> Rows | None:
        data = b"\n".join(lines)
        try:
            instances, keys = self._decode_instances(data)
        except _DECODE_ERRORS:
            return None
        if len(instances) != len(lines):
            return None
        if not self.codec.has_keys(data, keys) and any(map(_repeats_a_key, lines)):
            return None
        return self.codec.rows(instances)

    def _decode_instances(self, data: bytes) -> tuple[list[Any], int]:
        """Return the instances and the number of different keys in their objects."""
        if self.decoder is None or self.strict_decoder is None:
            raise ValueError("these columns are decoded line by line")
        try:
            instances = self.strict_decoder.decode_lines(data)
        except msgspec.ValidationError:  # there are keys that are not features
            return self.decoder.decode_lines(data), sum(map(len, _RAW_OBJECT.decode_lines(data)))
        return instances, len(instances) * len(self.columns)

    def _decode_one(self, line: bytes, row: int, row_faults: CellFaults) -> Rows:
        """Return the row of one line, or placeholders if it is invalid."""
        faults = Faults()
        values: list[list[Any]] = [[] for _ in self.columns]
        try:
            self.codec.read_instance(row, read_json(line), values, faults, strict=False)
        except Invalid as error:
            faults.add(f"the line is not valid JSON: {error}", row, None)
        if faults:
            row_faults[row] = list(faults)
            values = [[PLACEHOLDERS[c.dtype]] for c in self.columns]
        arrays = [c.array(v) for c, v in zip(self.columns, values, strict=True)]
        return rows_of(self.columns, arrays, 1)


def _repeats_a_key(line: bytes) -> bool:
    return isinstance(read_json(line), RepeatedKey)


def _concatenate(pieces: list[Rows]) -> Rows:
    if len(pieces) == 1:
        return pieces[0]
    if pieces[0].matrix is not None:
        return Rows(matrix=np.concatenate([p.matrix for p in pieces]))
    columns = zip(*(p.columns for p in pieces if p.columns is not None), strict=True)
    return Rows(columns=tuple(np.concatenate(c) for c in columns))


class _TextDecoder:
    """Decodes values as text: a string as it is, any other value as its JSON, null as null."""

    def __init__(self, names: Sequence[str]) -> None:
        self.schema = pa.schema([(name, pa.string()) for name in names])
        self.fields = [f"f{i}" for i in range(len(names))]
        self.decoder: msgspec.json.Decoder[Any] | None
        struct_fields = [(field, msgspec.Raw, msgspec.Raw(b"null")) for field in self.fields]
        try:
            rename = dict(zip(self.fields, names, strict=True))
            struct = msgspec.defstruct("ExtraColumns", struct_fields, rename=rename, gc=False)
            self.decoder = msgspec.json.Decoder(struct)
        except ValueError:  # msgspec cannot rename to a name with a quote or a control character
            self.decoder = None

    def decode(self, lines: Sequence[bytes], faults: CellFaults) -> Any:
        """Return a record batch. Lines that are not JSON are null, and are added to `faults`."""
        if not self.fields:
            return pa.RecordBatch.from_arrays([], schema=self.schema)
        try:
            rows = self._decode_all(lines)
        except _DECODE_ERRORS:
            rows = [self._decode_one(line, row, faults) for row, line in enumerate(lines)]
        arrays = [pa.array(texts, pa.string()) for texts in zip(*rows, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _decode_all(self, lines: Sequence[bytes]) -> list[list[str | None]]:
        if self.decoder is None:
            raise ValueError("these columns are decoded line by line")
        objects = self.decoder.decode_lines(b"\n".join(lines))
        if len(objects) != len(lines):
            raise ValueError("some lines contain several values")
        return [[_text_of(getattr(item, field)) for field in self.fields] for item in objects]

    def _decode_one(self, line: bytes, row: int, faults: CellFaults) -> list[str | None]:
        try:
            value = _RAW_OBJECT.decode(line)
            return [_text_of(value.get(name)) for name in self.schema.names]
        except _DECODE_ERRORS as error:
            if row not in faults:
                message = f"the line is not valid JSON: {error}"
                if isinstance(error, UnicodeDecodeError):
                    message = "the line is not valid UTF-8, perhaps Latin-1; save the file as UTF-8"
                faults[row] = [FieldError(message, row)]
            return [None] * len(self.fields)


def _text_of(raw: msgspec.Raw | None) -> str | None:
    text = None if raw is None else bytes(raw)
    if text is None or text == b"null":
        return None
    return str(msgspec.json.decode(text)) if text.startswith(b'"') else text.decode()
