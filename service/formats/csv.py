"""CSV: RFC 4180 in UTF-8 as online, any size; a part is a byte range between two rows.

What a cell means is the online codec's rule (`service.runtime.codec.tables`). Plain numbers are read by
`plain`; otherwise pyarrow tells the cells apart and parses numbers, and a block with anything unusual in it
is read once more as text. Id and passthrough columns stay text as written. A row with too many or too few
cells is a fault of its own.
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
from service.formats import column_types, compression, media_types
from service.formats.cells import checked, parsed, strings
from service.formats.dataset import PART_BYTES, Block, Dataset, File, FileRange, refuse
from service.formats.record_blocks import MAX_RECORD_BYTES, Records, blocks, first, has_quotes, ranges
from service.formats.sources import Opened, Stream
from service.runtime.codec.columns import Column, show
from service.runtime.codec.tables import csv_value
from service.runtime.without import numba_without_scipy

SUFFIXES = tuple(
    name + ending for name in media_types.SUFFIXES[media_types.CSV] for ending in compression.ENDINGS
)

_SAMPLE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_ODD_NAN = re.compile(rb"nan\(", re.IGNORECASE)  # a number to pyarrow, text to the codec


class Header(NamedTuple):
    names: tuple[str, ...]
    end: int  # where the first row starts, in plain bytes
    records: Records


def schema(file: File) -> Any:
    """The columns, with types as the first rows suggest. Raises `Invalid` when there is no header."""
    with Opened(file) as opened:
        header = _header(opened)
        stream = _after_header(opened, header)
        sample = stream.read(_SAMPLE_BYTES)
        whole = (sample[: header.records.end(sample)] or sample).decode(errors="replace").encode()
    if not whole.strip():
        return pa.schema([(n, pa.null()) for n in header.names])
    found, _ = _table(whole, header.names, {}, header.names)
    codes = _codes(whole, header.names, found.schema)
    return pa.schema([(f.name, pa.string() if f.name in codes else _simple(f.type)) for f in found.schema])


def _codes(data: bytes, names: Sequence[str], schema: Any) -> dict[str, str]:
    """By column of numbers, unless somebody said that it is one, a text in it that is none."""
    numbers = [
        f.name for f in schema if f.type in (pa.int64(), pa.float64()) and not column_types.is_given(f)
    ]
    if not numbers or column_types.MAYBE_CODE.search(data) is None:
        return {}
    texts, _ = _table(data, names, dict.fromkeys(numbers, pa.string()), numbers)
    found = {name: column_types.code(texts.column(name)) for name in numbers}
    return {name: text for name, text in found.items() if text is not None}


def _simple(kind: Any) -> Any:
    return kind if kind in (pa.null(), pa.int64(), pa.float64(), pa.bool_()) else pa.string()


def cut(dataset: Dataset, index: int) -> list[FileRange]:
    """Ranges of about `PART_BYTES`. Without a quote in the file any line end will do, which takes a look at
    each byte at the memory's speed; with quotes the rows are found one after another."""
    file = dataset.files[index]
    with Opened(file) as opened:
        header = _header(opened)
        if compression.codec(opened) is not None:
            return [FileRange(index, 0, file.bytes)]
        if file.bytes - header.end <= PART_BYTES:
            return [FileRange(index, header.end, file.bytes)]
        if has_quotes(opened, header.end):
            found = list(_quoted_ranges(opened, header))
        else:
            found = ranges(opened, header.end, header.records.eol)
        parts = [FileRange(index, a, b) for a, b in found]
        opened.check()
    return parts


def _quoted_ranges(opened: Opened, header: Header) -> Iterator[tuple[int, int]]:
    start = stop = header.end
    for block in blocks(Stream(opened, header.end), None, header.records, opened.file.name):
        stop += len(block)
        if stop - start >= PART_BYTES:
            yield start, stop
            start = stop
    if stop > start:
        yield start, stop


def read(opened: Opened, part: FileRange, columns: Sequence[Column], extra: Sequence[str]) -> Iterator[Block]:
    header, stream, size = _start(opened, part)
    large = part.start > header.end
    for data in blocks(stream, size, header.records, opened.file.name):
        found = _plain_block(data, header.names, columns, extra) if large else None
        yield found or _block(data, header.names, columns, extra)
        large = True


def _plain_block(
    data: bytes, names: Sequence[str], columns: Sequence[Column], extra: Sequence[str]
) -> Block | None:
    # numba costs half a second and 60 MB, which a small file or a look at the first rows never pays
    numba_without_scipy()
    from service.formats import plain_csv

    return plain_csv.block(data, names, columns, extra)


def tables(opened: Opened, part: FileRange, schema: Any) -> Iterator[Any]:
    """Record batches of the columns of `schema`. Raises `Invalid` where a cell is not of its
    type or a row has a wrong number of cells."""
    header, stream, size = _start(opened, part)
    kinds = dict(zip(schema.names, schema.types, strict=True))
    for data in blocks(stream, size, header.records, opened.file.name):
        try:
            batch, broken = _table(data, header.names, kinds, schema.names, nulls=True)
        except pa.ArrowInvalid as error:
            told = f"{opened.file.name!r} is not like its first rows: {column_types.why(error, header.names)}"
            raise refuse(f"{told}; say what the column holds (dtypes, --dtype NAME=TYPE)") from error
        for message in broken.values():
            raise refuse(f"{opened.file.name!r} cannot be read: {message}")
        for name, text in _codes(data, header.names, schema).items():
            told = f"column {show(name)} of {opened.file.name!r} has {text!r}, and numbers in its first rows"
            raise refuse(f"{told}; say what the column holds (dtypes, --dtype NAME=TYPE)")
        yield batch


def _start(opened: Opened, part: FileRange) -> tuple[Header, compression.Bytes, int | None]:
    header = _header(opened)
    if compression.codec(opened) is not None:
        return header, _after_header(opened, header), None
    start = max(part.start, header.end)
    return header, Stream(opened, start), part.stop - start


def _block(data: bytes, names: Sequence[str], columns: Sequence[Column], extra: Sequence[str]) -> Block:
    features = [c.name for c in columns]
    include = list(dict.fromkeys([*features, *extra]))
    cells = {n: pa.binary() for n in include}
    numbers = {c.name: pa.float64() for c in columns if c.dtype not in ("string", "bool")}
    for name in extra:
        numbers.pop(name, None)
    found = None
    if numbers and not (b"(" in data and _ODD_NAN.search(data)):
        try:
            batch, broken = _table(data, names, cells | numbers, include)
            found = parsed(columns, batch.select(features))
        except pa.ArrowInvalid:
            found = None
    if found is None:
        batch, broken = _table(data, names, cells, include)
        found = checked(columns, batch.select(features), csv_value)
    length = batch.num_rows + len(broken)
    at = np.delete(np.arange(length), sorted(broken)) if broken else None
    return Block(length, found.rows, strings(batch.select(list(extra)), found.wrong), at, found.wrong, broken)


def _table(
    data: bytes, names: Sequence[str], kinds: Mapping[str, Any], include: Sequence[str], nulls: bool = False
) -> tuple[Any, dict[int, str]]:
    """One record batch, and the rows with a wrong number of cells by their place among all rows."""
    if _is_utf8(data):
        return _read_table(data, names, kinds, include, nulls, "utf8")
    # pyarrow hands on a row with a wrong number of cells as text, and breaks off where that is none
    batch, broken = _read_table(data, names, kinds, include, nulls, "latin1")
    columns = [_as_written(c) if pa.types.is_binary(c.type) else c for c in batch.columns]
    if any(pa.types.is_string(c.type) and not _is_ascii(c) for c in columns):
        raise pa.ArrowInvalid("there are bytes that are no UTF-8")
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema), broken


def _is_utf8(data: bytes) -> bool:
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False


def _is_ascii(texts: Any) -> bool:
    return pac.all(pac.string_is_ascii(texts)).as_py() is not False  # None: there is none


def _as_written(cells: Any) -> Any:
    """The bytes of cells that were read as Latin-1, where each byte is a character."""
    return pa.array([c and c.decode().encode("latin1") for c in cells.to_pylist()], pa.binary())


def _read_table(
    data: bytes,
    names: Sequence[str],
    kinds: Mapping[str, Any],
    include: Sequence[str],
    nulls: bool,
    encoding: str,
) -> tuple[Any, dict[int, str]]:
    broken: dict[int, str] = {}

    def odd(row: Any) -> str:
        broken[row.number - 1] = f"the row has {row.actual_columns} cells, the header has {len(names)}"
        return "skip"

    table = pc.read_csv(
        pa.BufferReader(data),
        pc.ReadOptions(
            use_threads=False, block_size=len(data) + 1, column_names=list(names), encoding=encoding
        ),
        pc.ParseOptions(newlines_in_values=True, invalid_row_handler=odd),
        pc.ConvertOptions(
            column_types=dict(kinds),
            include_columns=list(include),
            null_values=[""],
            strings_can_be_null=nulls,
        ),
    )
    batches = table.combine_chunks().to_batches()
    return (batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)), broken


def _after_header(opened: Opened, header: Header) -> compression.Bytes:
    stream = compression.plain(opened)
    stream.read(header.end)
    return stream


def _header(opened: Opened) -> Header:
    stream = compression.plain(opened)
    data = stream.read(_SAMPLE_BYTES)
    name = opened.file.name
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise refuse(f"{name!r} is UTF-16; save it as UTF-8", expected="UTF-8")
    start = len(_BOM) if data.startswith(_BOM) else 0
    start += len(data[start:]) - len(data[start:].lstrip(b"\r\n"))
    records = Records() if b"\n" in data[start:] or b"\r" not in data[start:] else Records(b"\r")
    while (end := first(data[start:])) == 0 and len(data) < MAX_RECORD_BYTES:
        more = stream.read(_SAMPLE_BYTES)
        data += more
        if not more:
            end = 0 if records.is_open(data[start:]) else len(data) - start
            break
    return Header(_names(data[start : start + end], name), start + end, records)


def _names(line: bytes, name: str) -> tuple[str, ...]:
    if not line:
        raise refuse(f"{name!r} is empty or has no header; the first row must name the columns")
    try:
        names = next(csv.reader(io.StringIO(line.decode(), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise refuse(f"the header of {name!r} cannot be read: {error}", expected="UTF-8") from error
    twice = [n for n, count in Counter(names).items() if count > 1]
    if twice:
        message = f"{name!r} has the column {show(twice[0])} more than once"
        raise Invalid(message, [FieldError(f"column {show(n)} is there twice", field=n) for n in twice])
    return tuple(names)
