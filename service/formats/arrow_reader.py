"""Arrow IPC input: the file format and the stream format, both under one media type.

A part of an Arrow file is some of its record batches. A stream cannot be entered in the middle, so it is one
part. Compressed buffers are supported.

A record batch is completely in memory, limited to the columns in use, however large its writer made it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from service.formats.cells import typed_block
from service.formats.dataset import (
    PART_BYTES,
    Block,
    Dataset,
    FileRange,
    InputFile,
    batch_rows,
    invalid_input,
)
from service.formats.sources import OpenedFile
from service.runtime.codec.columns import Column

_FILE_MAGIC = b"ARROW1"
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def read_schema(file: InputFile) -> Any:
    """Return the file's schema. Raises `Invalid` if it is not a complete Arrow file or stream."""
    with OpenedFile(file) as opened:
        schema = _open(opened).schema
        # a stream that was cut between two messages would read like a shorter stream
        ending = opened.read_at(max(0, file.bytes - len(_END_OF_STREAM)), len(_END_OF_STREAM))
        if not _is_file(opened) and ending != _END_OF_STREAM:
            raise invalid_input(f"{file.name!r} is incomplete: the end of the Arrow stream is missing")
    return schema


def split_file(dataset: Dataset, index: int) -> list[FileRange]:
    """Divide a file into runs of record batches of about `PART_BYTES`. A stream is one part."""
    file = dataset.files[index]
    with OpenedFile(file) as opened:
        if not _is_file(opened):
            return [FileRange(index, 0, 1)]
        count = _open(opened).num_record_batches
    step = max(1, count * PART_BYTES // file.bytes)
    parts = [FileRange(index, start, min(start + step, count)) for start in range(0, count, step)]
    return parts or [FileRange(index, 0, 0, 0)]


def read_blocks(
    opened: OpenedFile, part: FileRange, columns: Sequence[Column], extra: Sequence[str]
) -> Iterator[Block]:
    """Yield the part's rows; `extra` names the id and passthrough columns."""
    names = list(dict.fromkeys([*(c.name for c in columns), *extra]))
    for batch in _read_batches(opened, part, names):
        yield typed_block(batch, columns, extra)


def read_record_batches(opened: OpenedFile, part: FileRange, schema: Any) -> Iterator[Any]:
    """Yield Arrow record batches with the columns of `schema`, in the types of the file."""
    return _read_batches(opened, part, schema.names)


def _read_batches(opened: OpenedFile, part: FileRange, names: Sequence[str]) -> Iterator[Any]:
    columns = _open(opened).schema.names
    reader = _open(opened, sorted(columns.index(name) for name in names))
    size = batch_rows(len(names))
    try:
        batches = reader
        if _is_file(opened):
            stop = min(part.stop, reader.num_record_batches)  # a file without rows may have no batch
            batches = map(reader.get_batch, range(part.start, stop))
        for batch in batches:
            batch.validate(full=True)  # before slicing: the offsets of a damaged file may be arbitrary
            for start in range(0, batch.num_rows, size):
                yield batch.slice(start, size).select(list(names))
    except (pa.ArrowException, OSError) as error:
        opened.check_unchanged()
        raise invalid_input(f"{opened.file.name!r} cannot be read: {str(error)[:300]}") from error


def _is_file(opened: OpenedFile) -> bool:
    return opened.read_at(0, len(_FILE_MAGIC)) == _FILE_MAGIC


def _open(opened: OpenedFile, fields: list[int] | None = None) -> Any:
    options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    source = opened.arrow_file()
    try:
        if _is_file(opened):
            return pa.ipc.open_file(source, options=options)
        return pa.ipc.open_stream(source, options=options)
    except (pa.ArrowException, OSError) as error:
        message = f"{opened.file.name!r} is not a complete Arrow file or stream: {str(error)[:300]}"
        raise invalid_input(message) from error
