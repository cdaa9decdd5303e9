"""CSV input: RFC 4180 in UTF-8, of any size. A part is a byte range between two rows.

The online codec (`service.runtime.codec.csv`) defines what a cell means. A block of plain numbers is read
by `fast_csv`. For any other block pyarrow separates the cells and parses numbers; if that leaves something
unclear, the block is read once more as text. Id and passthrough columns remain text as written. A row with
too many or too few cells is a fault of that row.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pac
import pyarrow.csv as pc

from registry.errors import FieldError, Invalid
from registry.text_tables import MISSING_WORDS
from service import startup
from service.formats import column_types
from service.formats.cells import accept_parsed_csv, check_batch, decode_columns
from service.formats.dataset import PART_BYTES, Block, Dataset, FileRange, InputFile, invalid_input
from service.formats.sources import FileStream, OpenedFile
from service.formats.text_records import (
    MAX_RECORD_BYTES,
    ByteStream,
    RecordFormat,
    byte_ranges,
    compression_of,
    first_end,
    has_quotes,
    is_utf8,
    not_utf8,
    open_text,
    read_records,
)
from service.runtime.codec.columns import Column, show
from service.runtime.codec.csv import csv_value
from service.runtime.codec.csv_cells import cast_cells, typed_cells

_SAMPLE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_NAN_PAYLOAD = re.compile(rb"nan\(", re.IGNORECASE)  # pyarrow parses nan(...) as a number, the codec does not


class CsvHeader(NamedTuple):
    """The header of a file, and how its records end."""

    names: tuple[str, ...]
    end: int  # position of the first row in the plain bytes
    form: RecordFormat


def read_schema(file: InputFile) -> Any:
    """Return the columns, with types inferred from the first rows. Raises `Invalid` without a header."""
    with OpenedFile(file) as opened:
        header = _read_header(opened)
        sample = _open_after_header(opened, header).read(_SAMPLE_BYTES)
    rows = header.form.complete_records(sample, _SAMPLE_BYTES).decode(errors="replace").encode()
    if not rows.strip():
        return pa.schema([(name, pa.null()) for name in header.names])
    batch, _ = _read_batch(rows, header.names, dict.fromkeys(header.names, pa.string()), header.names)
    return pa.schema([(name, typed_cells(batch.column(name)).type) for name in header.names])


def _find_codes(data: bytes, names: Sequence[str], schema: Any) -> dict[str, str]:
    """Return a text that is a code, not a number, for each numeric column of `schema` with such a text.

    Columns whose type the user set are not checked.
    """
    numeric = [
        f.name for f in schema if f.type in (pa.int64(), pa.float64()) and not column_types.is_explicit(f)
    ]
    if not numeric or column_types.MAYBE_CODE.search(data) is None:
        return {}
    texts, _ = _read_batch(data, names, dict.fromkeys(numeric, pa.string()), numeric)
    codes = {name: column_types.find_code(texts.column(name)) for name in numeric}
    return {name: code for name, code in codes.items() if code is not None}


def split_file(dataset: Dataset, index: int) -> list[FileRange]:
    """Divide the file into ranges of about `PART_BYTES`.

    In a file without quotes every line end is the end of a row; checking for quotes reads the file once, at
    the speed of memory. In a file with quotes the rows are located one after another.
    """
    file = dataset.files[index]
    with OpenedFile(file) as opened:
        header = _read_header(opened)
        if compression_of(opened) is not None:
            return [FileRange(index, 0, file.bytes)]
        if file.bytes - header.end <= PART_BYTES:
            return [FileRange(index, header.end, file.bytes)]
        if has_quotes(opened, header.end):
            bounds = list(_quoted_ranges(opened, header))
        else:
            bounds = byte_ranges(opened, header.end, header.form.eol)
        opened.check_unchanged()
    return [FileRange(index, start, stop) for start, stop in bounds]


def _quoted_ranges(opened: OpenedFile, header: CsvHeader) -> Iterator[tuple[int, int]]:
    start = stop = header.end
    for block in read_records(FileStream(opened, header.end), None, header.form, opened.file.name):
        stop += len(block)
        if stop - start >= PART_BYTES:
            yield start, stop
            start = stop
    if stop > start:
        yield start, stop


def read_blocks(
    opened: OpenedFile, part: FileRange, columns: Sequence[Column], extra: Sequence[str]
) -> Iterator[Block]:
    """Yield the part's rows; `extra` names the id and passthrough columns."""
    header, stream, size = _open_part(opened, part)
    use_fast_path = part.start > header.end
    for data in read_records(stream, size, header.form, opened.file.name):
        block = _read_fast(data, header.names, columns, extra) if use_fast_path else None
        yield block or _read_block(data, header.names, columns, extra)
        use_fast_path = True


def _read_fast(
    data: bytes, names: Sequence[str], columns: Sequence[Column], extra: Sequence[str]
) -> Block | None:
    # imported on demand: small files and reads of the first rows do not need numba (0.5 s, 60 MB)
    startup.import_numba()
    from service.formats.fast_csv import blocks

    return blocks.read_block(data, names, columns, extra)


def read_record_batches(opened: OpenedFile, part: FileRange, schema: Any) -> Iterator[Any]:
    """Yield Arrow record batches with the columns of `schema`.

    Raises `Invalid` if a cell does not have its column's type, or a row has a wrong number of cells.
    """
    header, stream, size = _open_part(opened, part)
    types = dict(zip(schema.names, schema.types, strict=True))
    name = opened.file.name
    for data in read_records(stream, size, header.form, name):
        try:
            batch, malformed = _read_typed(data, header.names, types)
        except pa.ArrowInvalid as error:
            if not is_utf8(data):
                raise not_utf8(name) from error
            message = column_types.describe_mismatch(error, header.names, schema, name)
            raise invalid_input(message) from error
        for message in malformed.values():
            raise invalid_input(f"{name!r} cannot be read: {message}")
        for column, code in _find_codes(data, header.names, schema).items():
            raise invalid_input(
                f"column {show(column)} of {name!r} contains {code!r}, but numbers in the first rows; "
                + column_types.SET_DTYPE_HINT
            )
        yield batch


def _has_nan_payload(data: bytes) -> bool:
    return b"(" in data and _NAN_PAYLOAD.search(data) is not None


def _read_typed(data: bytes, names: Sequence[str], types: Mapping[str, Any]) -> tuple[Any, dict[int, str]]:
    """Return a record batch of the columns `types`, and messages as `_read_batch` does.

    pyarrow parses most columns. Where it does not accept a cell, such as a missing word between spaces, the
    cells are read as text and converted. Raises `pa.ArrowInvalid` as `_read_batch` does.
    """
    include = list(types)
    try:
        if _has_nan_payload(data):
            raise pa.ArrowInvalid("pyarrow parses nan(...) as a number")
        batch, malformed = _read_batch(data, names, types, include)
    except pa.ArrowInvalid:
        batch, malformed = _read_batch(data, names, dict.fromkeys(include, pa.string()), include)
    columns = []
    for name, column in zip(include, batch.columns, strict=True):
        try:
            columns.append(cast_cells(column, types[name]) if pa.types.is_string(column.type) else column)
        except pa.ArrowInvalid as error:
            value = re.search(r"'.*'", str(error), re.DOTALL)
            reason = f"invalid value {value[0]}" if value else str(error)
            raise pa.ArrowInvalid(f"In CSV column #{names.index(name)}: {reason}") from error
    return pa.RecordBatch.from_arrays(columns, names=include), malformed


def _open_part(opened: OpenedFile, part: FileRange) -> tuple[CsvHeader, ByteStream, int | None]:
    """Return the header, a stream from the part's first row on, and how many bytes to read (None: all)."""
    header = _read_header(opened)
    if compression_of(opened) is not None:
        return header, _open_after_header(opened, header), None
    start = max(part.start, header.end)
    return header, FileStream(opened, start), part.stop - start


def _read_block(data: bytes, names: Sequence[str], columns: Sequence[Column], extra: Sequence[str]) -> Block:
    features = [c.name for c in columns]
    include = list(dict.fromkeys([*features, *extra]))
    text_types = {name: pa.binary() for name in include}
    number_types = {c.name: pa.float64() for c in columns if c.dtype not in ("string", "bool")}
    for name in extra:
        number_types.pop(name, None)
    checked = None
    if number_types and not _has_nan_payload(data):
        try:
            batch, malformed = _read_batch(data, names, text_types | number_types, include)
            checked = accept_parsed_csv(columns, batch.select(features))
        except pa.ArrowInvalid:
            checked = None
    if checked is None:
        batch, malformed = _read_batch(data, names, text_types, include)
        checked = check_batch(columns, batch.select(features), csv_value)
    length = batch.num_rows + len(malformed)
    return Block(
        length=length,
        rows=checked.rows,
        extra=decode_columns(batch.select(list(extra)), checked.faults),
        row_numbers=np.delete(np.arange(length), sorted(malformed)) if malformed else None,
        cell_faults=checked.faults,
        malformed=malformed,
    )


def _read_batch(
    data: bytes, names: Sequence[str], types: Mapping[str, Any], include: Sequence[str]
) -> tuple[Any, dict[int, str]]:
    """Return one record batch, and a message for each row with a wrong number of cells, by row number.

    Raises `pa.ArrowInvalid` for cells that do not have their type.
    """
    if is_utf8(data):
        return _parse(data, names, types, include, "utf8")
    # pyarrow decodes a row with a wrong number of cells, and fails without its number if it is not UTF-8
    batch, malformed = _parse(data, names, types, include, "latin1")
    columns = [_undo_latin1(c) if pa.types.is_binary(c.type) else c for c in batch.columns]
    if any(pa.types.is_string(c.type) and not _is_ascii(c) for c in columns):
        raise pa.ArrowInvalid("some bytes are not valid UTF-8")
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema), malformed


def _is_ascii(texts: Any) -> bool:
    return pac.all(pac.string_is_ascii(texts)).as_py() is not False  # None for an empty column


def _undo_latin1(cells: Any) -> Any:
    """Return the original bytes of cells that were decoded as Latin-1, one character per byte."""
    return pa.array([c and c.decode().encode("latin1") for c in cells.to_pylist()], pa.binary())


def _parse(
    data: bytes,
    names: Sequence[str],
    types: Mapping[str, Any],
    include: Sequence[str],
    encoding: str,
) -> tuple[Any, dict[int, str]]:
    malformed: dict[int, str] = {}

    def skip_row(row: Any) -> str:
        malformed[row.number - 1] = f"the row has {row.actual_columns} cells, the header has {len(names)}"
        return "skip"

    table = pc.read_csv(
        pa.BufferReader(data),
        pc.ReadOptions(
            use_threads=False, block_size=len(data) + 1, column_names=list(names), encoding=encoding
        ),
        pc.ParseOptions(newlines_in_values=True, invalid_row_handler=skip_row),
        pc.ConvertOptions(
            column_types=dict(types),
            include_columns=list(include),
            null_values=list(MISSING_WORDS),  # of numbers and booleans
            strings_can_be_null=False,
        ),
    )
    batches = table.combine_chunks().to_batches()
    return (batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)), malformed


def _open_after_header(opened: OpenedFile, header: CsvHeader) -> ByteStream:
    stream = open_text(opened)
    stream.read(header.end)
    return stream


def _read_header(opened: OpenedFile) -> CsvHeader:
    stream = open_text(opened)
    data = stream.read(_SAMPLE_BYTES)
    name = opened.file.name
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise invalid_input(f"{name!r} is UTF-16; save it as UTF-8", expected="UTF-8")
    start = len(_BOM) if data.startswith(_BOM) else 0
    start += len(data[start:]) - len(data[start:].lstrip(b"\r\n"))
    form = RecordFormat() if b"\n" in data[start:] or b"\r" not in data[start:] else RecordFormat(b"\r")
    while (end := first_end(data[start:])) == 0 and len(data) < MAX_RECORD_BYTES:
        chunk = stream.read(_SAMPLE_BYTES)
        data += chunk
        if not chunk:
            end = 0 if form.is_open(data[start:]) else len(data) - start
            break
    return CsvHeader(_parse_names(data[start : start + end], name), start + end, form)


def _parse_names(line: bytes, name: str) -> tuple[str, ...]:
    if not line:
        raise invalid_input(f"{name!r} is empty or has no header; the first row must name the columns")
    try:
        names = next(csv.reader(io.StringIO(line.decode(), newline="")))
    except UnicodeDecodeError as error:
        message = f"the header of {name!r} is not UTF-8 (byte {error.start}), perhaps Latin-1 or Windows-1252"
        raise invalid_input(f"{message}; save the file as UTF-8", expected="UTF-8") from error
    except csv.Error as error:
        raise invalid_input(f"the header of {name!r} cannot be read: {error}", expected="UTF-8") from error
    repeated = [n for n, count in Counter(names).items() if count > 1]
    if repeated:
        message = f"{name!r} has the column {show(repeated[0])} more than once"
        raise Invalid(message, [FieldError(f"column {show(n)} is repeated", field=n) for n in repeated])
    return tuple(names)
