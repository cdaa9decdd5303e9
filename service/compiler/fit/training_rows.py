"""Read the rows of a step in the form that the estimator receives when it is served, with the true values."""

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
from service.compiler.fit.fit_records import SEED, FitStep
from service.compiler.fit.sampling import Quota, sample_mask, seeded_generator
from service.compiler.signature.estimator import InputForm, arrange


@dataclass(frozen=True)
class TrainingBlock:
    """`X` in the estimator's input form. `y`: true values, or int64 class codes for a classifier."""

    X: Any
    y: Array

    def __len__(self) -> int:
        return len(self.y)


def class_labels(step: FitStep, codes: Array) -> Array:
    """The class of each code, as the estimator receives it."""
    return class_array(step)[codes]


def class_array(step: FitStep) -> Array:
    """The sorted classes. Strings are in an object array, as in a column of a data frame."""
    values = list(step.classes or ())
    return np.array(values, dtype=object if isinstance(values[0], str) else None)


def read_all(step: FitStep, form: InputForm) -> TrainingBlock:
    """Read all rows of the step into one block."""
    batches = list(_sampled_batches(step))
    return _block(pa.concat_batches(batches) if batches else _empty_batch(step), step, form)


def read_blocks(step: FitStep, form: InputForm) -> Iterator[TrainingBlock]:
    """Read the rows of the step block by block."""
    for batch in _sampled_batches(step):
        if batch.num_rows:
            yield _block(batch, step, form)


def read_slots(step: FitStep) -> Iterator[Any]:
    """Yield the record batches of the step's slots, in the order of the partitions."""
    for slot in step.slots:
        with pa.memory_map(slot.file) as source, pa.ipc.open_file(source) as file:
            for index in range(slot.slot, file.num_record_batches, slot.of):
                yield file.get_batch(index)


def first_rows(rows: Any, count: int) -> Any:
    """The first rows of a data frame, array or list."""
    return rows.iloc[:count] if isinstance(rows, pd.DataFrame) else rows[:count]


def _sampled_batches(step: FitStep) -> Iterator[Any]:
    if step.shares is None:
        yield from read_slots(step)
        return
    quotas = {code: Quota(s.take, s.of, s.before) for code, s in enumerate(step.shares)}
    generator = seeded_generator(SEED, step.number)
    for batch in read_slots(step):
        yield batch.filter(pa.array(sample_mask(_true_values(batch, step), quotas, generator)))


def _block(batch: Any, step: FitStep, form: InputForm) -> TrainingBlock:
    inputs = tuple(Input(f.name, f.dtype) for f in step.features)
    columns = tuple(example.to_numpy(batch.column(f.name), f.dtype) for f in step.features)
    return TrainingBlock(arrange(form, Rows(columns=columns), inputs), _true_values(batch, step))


def _true_values(batch: Any, step: FitStep) -> Array:
    column = batch.column(step.target)
    if step.classes is None:
        return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False))
    classes = pa.array(list(step.classes), column.type)
    return np.asarray(pc.index_in(column, classes).to_numpy(zero_copy_only=False), dtype=np.int64)


def _empty_batch(step: FitStep) -> Any:
    with pa.memory_map(step.slots[0].file) as source, pa.ipc.open_file(source) as file:
        return pa.RecordBatch.from_pylist([], schema=file.schema)
