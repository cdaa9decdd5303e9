"""Key columns: the columns of a Hive-partitioned directory that are in the paths of its files.

In `day=2026-01-01/country=DE/part-0.parquet`, the columns `day` and `country` have one value for all rows of
the file. Names and values are percent-encoded; `__HIVE_DEFAULT_PARTITION__` is a missing value. A value is
text, as a CSV cell is: the signature decides what it means as a feature, and a copy of it stays as written.

See docs/adr/0026-key-columns-are-text.md.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from registry.errors import FieldError, Invalid
from registry.rows import Array, Rows
from service.formats.cells import PLACEHOLDERS
from service.formats.column_types import find_code, to_text
from service.formats.dataset import Block, Dataset, InputFile, Keys, invalid_input
from service.runtime.codec.columns import Column, ValueRejected, rows_of, show
from service.runtime.codec.csv import csv_value

MISSING = "__HIVE_DEFAULT_PARTITION__"
MAX_KEYS = 32
_TABLE_LOGS = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}
"""Directories of table formats, in which a log states which files are valid."""
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def reject_table_log(name: str, directory: str) -> None:
    """Raises `Invalid` if an entry shows that the directory is a table: files may hold deleted rows."""
    if (table := _TABLE_LOGS.get(name)) is not None:
        raise invalid_input(
            f"{directory!r} is a {table} table ({name}), whose log decides which files are valid; write its "
            "rows to a directory of plain files"
        )


def parse_keys(directories: Sequence[str]) -> Keys:
    """Return the names and values in directory names such as `day=2026-01-01`, outermost first.

    Raises `Invalid` if a directory has another name.
    """
    keys: dict[str, str | None] = {}
    for directory in directories:
        encoded_name, separator, encoded_value = directory.partition("=")
        name, value = _decode(encoded_name, directory), _decode(encoded_value, directory)
        if not (separator and name):
            raise invalid_input(
                f"the input contains a directory, {show(directory)}; directories must be named by a column "
                "and its value, as in day=2026-01-01"
            )
        if name in keys:
            raise invalid_input(f"the path {show('/'.join(directories))} has {show(name)} twice")
        keys[name] = None if value == MISSING else value
    if len(keys) > MAX_KEYS:
        raise invalid_input(f"the input has more than {MAX_KEYS} levels of directories")
    return tuple(keys.items())


def _decode(text: str, directory: str) -> str:
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeError as error:
        raise invalid_input(f"the directory name {show(directory)} is not valid UTF-8") from error


def require_same_keys(files: Sequence[InputFile]) -> tuple[str, ...]:
    """Return the key columns. Raises `Invalid` if the paths of the files have different ones."""
    first = files[0]
    names = tuple(name for name, _ in first.keys)
    for file in files:
        if tuple(name for name, _ in file.keys) != names:
            raise invalid_input(
                f"the files {first.name!r} and {file.name!r} are in directories with different columns"
            )
    return names


def key_types(files: Iterable[InputFile], names: Sequence[str]) -> Any:
    """Return the types of the key columns for training, inferred as those of CSV columns are."""
    values = {name: {dict(file.keys)[name] for file in files} for name in names}
    return pa.schema([(name, _inferred_type(texts)) for name, texts in values.items()])


def _inferred_type(values: set[str | None]) -> Any:
    texts = [text for text in values if text]
    if not texts:
        return pa.float64()
    if {text.lower() for text in texts} <= {"true", "false"}:
        return pa.bool_()
    if not all(map(_NUMBER.fullmatch, texts)) or find_code(pa.array(texts)) is not None:
        return pa.string()
    try:
        pa.array(texts).cast(pa.int64())
    except pa.ArrowInvalid:
        return pa.float64()
    return pa.int64()


def own_columns(dataset: Dataset, names: Iterable[str]) -> list[str]:
    """Return those of `names` that are columns of the files themselves."""
    return [name for name in names if name not in dataset.keys or name in dataset.repeated_keys]


def add_keys(
    block: Block, dataset: Dataset, file: InputFile, columns: Sequence[Column], extra: Sequence[str]
) -> Block:
    """Add the key columns among `columns` and `extra` to the rows of a file.

    `block` has the other ones, and those that the files hold as well. Raises `Invalid` if such a column has
    another value than the path.
    """
    keys = dict(file.keys)
    length = block.length - len(block.malformed)
    if any(column.name in keys for column in columns):
        own = [column for column in columns if own_columns(dataset, [column.name])]
        arrays = dict(zip([c.name for c in own], _arrays(block.rows, own), strict=True))
        faults = []
        for column in columns:
            if column.name in keys:
                fault = _add_feature(column, keys[column.name], length, arrays, file, block.cell_faults)
                faults += [fault] if fault else []
        block.rows = rows_of(columns, [arrays[c.name] for c in columns], length)
        for row in range(length) if faults else ():
            block.cell_faults.setdefault(row, []).extend(faults)
    if any(name in keys for name in extra):
        block.extra = _add_extra(block.extra, keys, length, extra, file)
    return block


def _arrays(rows: Rows, columns: Sequence[Column]) -> list[Array]:
    if rows.columns is not None:
        return list(rows.columns)
    assert rows.matrix is not None
    return [column.array(rows.matrix[:, j]) for j, column in enumerate(columns)]


def _add_feature(
    column: Column,
    text: str | None,
    length: int,
    arrays: dict[str, Array],
    file: InputFile,
    invalid: Container[int],
) -> FieldError | None:
    """Add the array of a feature that is a key. Returns the fault of all rows if its value is not accepted.

    The file's own values are not compared in `invalid` rows, which hold placeholders.
    """
    try:
        value = column.check(None if text is None else csv_value(text, column))
    except ValueRejected as error:
        message = f"{show(column.name)} {error} (in the path {file.name!r})"
        arrays[column.name] = np.repeat(column.array([PLACEHOLDERS[column.dtype]]), length)
        return FieldError(message, None, column.name, column.expected)
    array = np.repeat(column.array([value]), length)
    own = arrays.get(column.name)
    if own is not None and not all(
        row in invalid or a == b or (a != a and b != b)
        for row, (a, b) in enumerate(zip(own, array, strict=True))
    ):
        raise _contradiction(column.name, text, file)
    arrays[column.name] = array
    return None


def _add_extra(
    extra: Any, keys: Mapping[str, str | None], length: int, names: Sequence[str], file: InputFile
) -> Any:
    arrays = []
    for name in names:
        if name not in keys:
            arrays.append(extra.column(name))
            continue
        array = pa.repeat(pa.scalar(keys[name], pa.string()), length)
        if name in extra.schema.names and not _equals(extra.column(name), array):
            raise _contradiction(name, keys[name], file)
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, names=list(names))


def _equals(own: Any, texts: Any) -> bool:
    """Whether a column of a file, written as text, holds these texts."""
    try:
        own = to_text(own)
    except pa.ArrowException:
        return False
    same = pc.fill_null(pc.equal(own, texts), False)
    return bool(pc.all(pc.or_(same, pc.and_(pc.is_null(own), pc.is_null(texts))), min_count=0).as_py())


def add_training_keys(batch: Any, dataset: Dataset, file: InputFile, names: Sequence[str]) -> Any:
    """Add the key columns among `names` to a batch for training, as text."""
    return _add_extra(batch, dict(file.keys), batch.num_rows, names, file)


def _contradiction(name: str, text: str | None, file: InputFile) -> Invalid:
    return invalid_input(
        f"column {show(name)} of {file.name!r} differs from its value in the path, {show(text)}; "
        "remove it from the file or from the path"
    )
