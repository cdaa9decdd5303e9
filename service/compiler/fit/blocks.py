"""Rows of the partitions in the form they will have when the model is served, and the truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from registry.rows import Array, Rows
from registry.signature import Input
from service.compiler import example
from service.compiler.fit.fit_records import SEED, Step
from service.compiler.fit.sampling import Quota, pick, random
from service.compiler.signature import row_layout
from service.compiler.signature.estimator import arrange


@dataclass(frozen=True)
class Block:
    """`X`: as the estimator takes it. `y`: the true values, or the classes' codes (int64) of a classifier."""

    X: Any
    y: Array

    def __len__(self) -> int:
        return len(self.y)


def labels(step: Step, codes: Array) -> Array:
    """The classes that `codes` stand for, as the estimator is to know them."""
    assert step.classes is not None
    return classes(step)[codes]


def classes(step: Step) -> Array:
    """Sorted; strings as an object array, which is what a data frame would hand over."""
    values = list(step.classes or ())
    return np.array(values, dtype=object if isinstance(values[0], str) else None)


def whole(step: Step, kind: row_layout.Kind) -> Block:
    """All rows of the step in one block."""
    tables = list(_sampled(step))
    return _block(pa.concat_batches(tables) if tables else _nothing(step), step, kind)


def batches(step: Step, kind: row_layout.Kind) -> Iterator[Block]:
    """The rows of the step, some at a time."""
    for table in _sampled(step):
        if table.num_rows:
            yield _block(table, step, kind)


def tables(step: Step) -> Iterator[Any]:
    """The record batches of the step's slots, in the order of the partitions."""
    for slot in step.slots:
        with pa.memory_map(slot.file) as source, pa.ipc.open_file(source) as file:
            for index in range(slot.slot, file.num_record_batches, slot.of):
                yield file.get_batch(index)


def _sampled(step: Step) -> Iterator[Any]:
    if step.shares is None:
        yield from tables(step)
        return
    quotas = {code: Quota(s.most, s.of, s.before) for code, s in enumerate(step.shares)}
    generator = random(SEED, step.number)
    for table in tables(step):
        yield table.filter(pa.array(pick(_truth(table, step), quotas, generator)))


def _block(table: Any, step: Step, kind: row_layout.Kind) -> Block:
    inputs = tuple(Input(f.name, f.dtype) for f in step.features)
    columns = tuple(example.to_numpy(table.column(f.name), f.dtype) for f in step.features)
    return Block(arrange(kind, Rows(columns=columns), inputs), _truth(table, step))


def _truth(table: Any, step: Step) -> Array:
    column = table.column(step.target)
    if step.classes is None:
        return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False))
    known = pa.array(list(step.classes), column.type)
    return np.asarray(pc.index_in(column, known).to_numpy(zero_copy_only=False), dtype=np.int64)


def _nothing(step: Step) -> Any:
    with pa.memory_map(step.slots[0].file) as source, pa.ipc.open_file(source) as file:
        return pa.RecordBatch.from_pylist([], schema=file.schema)


def head(frame: Any, rows: int) -> Any:
    """The first rows of whatever an estimator takes."""
    return frame.iloc[:rows] if isinstance(frame, pd.DataFrame) else frame[:rows]
