"""Arrow IPC, both formats under one media type: of the file format a part is some record batches, of the
stream format, which cannot be entered in the middle, the whole file. Compressed buffers are fine.

A record batch is in memory whole, with the columns that are needed, whatever its writer thought of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from service.formats import media_types
from service.formats.cells import block_of
from service.formats.dataset import PART_BYTES, Block, Dataset, File, FileRange, batch_rows, refuse
from service.formats.sources import Opened
from service.runtime.codec.columns import Column

SUFFIXES = media_types.SUFFIXES[media_types.ARROW]

_FILE_MAGIC = b"ARROW1"
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def schema(file: File) -> Any:
    """Raises `Invalid` when the file is in neither format, or not whole."""
    with Opened(file) as opened:
        found = _open(opened).schema
        # a stream that ends between two messages reads like a shorter one
        ends = opened.read_at(max(0, file.bytes - len(_END_OF_STREAM)), len(_END_OF_STREAM))
        if not _is_file(opened) and ends != _END_OF_STREAM:
            raise refuse(f"{file.name!r} is not whole: the end of the Arrow stream is missing")
    return found


def cut(dataset: Dataset, index: int) -> list[FileRange]:
    """Runs of record batches of about `PART_BYTES`, or the whole stream."""
    file = dataset.files[index]
    with Opened(file) as opened:
        if not _is_file(opened):
            return [FileRange(index, 0, 1)]
        count = _open(opened).num_record_batches
    step = max(1, count * PART_BYTES // file.bytes)
    return [FileRange(index, a, min(a + step, count)) for a in range(0, count, step)] or [
        FileRange(index, 0, 0, 0)
    ]


def read(opened: Opened, part: FileRange, columns: Sequence[Column], extra: Sequence[str]) -> Iterator[Block]:
    names = list(dict.fromkeys([*(c.name for c in columns), *extra]))
    for batch in batches(opened, part, names):
        yield block_of(batch, columns, extra)


def batches(opened: Opened, part: FileRange, names: Sequence[str]) -> Iterator[Any]:
    """The part's record batches with the columns of `names`, in that order."""
    known = _open(opened).schema.names
    source = _open(opened, sorted(known.index(n) for n in names))
    size = batch_rows(len(names))
    try:
        whole = map(source.get_batch, range(part.start, part.stop)) if _is_file(opened) else source
        for batch in whole:
            batch.validate(full=True)  # before it is sliced: an offset may lead anywhere
            for start in range(0, batch.num_rows, size):
                yield batch.slice(start, size).select(list(names))
    except (pa.ArrowException, OSError) as error:
        opened.check()
        raise refuse(f"{opened.file.name!r} cannot be read: {str(error)[:300]}") from error


def _is_file(opened: Opened) -> bool:
    return opened.read_at(0, len(_FILE_MAGIC)) == _FILE_MAGIC


def _open(opened: Opened, fields: list[int] | None = None) -> Any:
    options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    stream = opened.for_arrow()
    try:
        if _is_file(opened):
            return pa.ipc.open_file(stream, options=options)
        return pa.ipc.open_stream(stream, options=options)
    except (pa.ArrowException, OSError) as error:
        name, why = opened.file.name, str(error)[:300]
        raise refuse(f"{name!r} is no Arrow file or stream, or not whole: {why}") from error
