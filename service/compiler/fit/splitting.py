"""Split one partition of the input into slots: validation rows, and rows to train on.

Runs in the worker, once per partition, before the first fit, and runs no code of a model. It writes the Arrow
file that all later steps read, with the same column types in each partition. The record batches of slot k are
those whose index modulo the number of slots is k. Slot 0 holds the validation rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from registry.errors import Refused
from registry.rows import Array
from registry.signature import Scalar
from service.compiler.fit.fit_records import SEED, Feature
from service.compiler.fit.sampling import SHARE_UNITS, Quota, RoundRobin, sample_mask, seeded_generator
from service.runtime.codec.arrow_types import (
    ARROW_TYPES,
    TypeNotSupported,
    feature_dtype,
    plain_type,
    to_dtype,
)

BLOCK_ROWS, BLOCK_CELLS = 1 << 16, 1 << 21
"""Largest size of a block, in rows and in cells. Each slot gets one record batch per block."""
MAX_CLASSES = 10_000
VALIDATION_SLOT = 0


class SplitLayout(msgspec.Struct, frozen=True):
    """How every partition of a training is split."""

    features: tuple[Feature, ...]
    target: Feature
    labelled: bool  # the target holds classes
    validation: float = 0.0  # share of validation rows: of each class, or of all rows for a regression
    training_slots: int = 1  # 1: the training rows stay together, in their order
    stratified: bool = False  # each training slot gets an equal share of each class

    @property
    def slots(self) -> int:
        return 1 + self.training_slots


class SplitCounts(msgspec.Struct, frozen=True):
    """Rows of a partition. `counts`: for each class, its rows in each slot (class None for a regression)."""

    rows: int
    failed: int  # rows without a target
    counts: tuple[tuple[Scalar | None, tuple[int, ...]], ...]
    missing: tuple[str, ...]  # features with missing values


def split_partition(
    batches: Iterable[Any],
    layout: SplitLayout,
    number: int,
    path: Path,
    on_progress: Callable[[int, int], None],
) -> SplitCounts:
    """Write partition `number` to `path`. `on_progress` receives the rows split and failed so far.

    Raises `Refused`, naming the column, when the columns differ from those of other partitions.
    """
    splitter = _Splitter(layout, number)
    columns = (*layout.features, layout.target)
    schema = pa.schema([(f.name, ARROW_TYPES[f.dtype]) for f in columns])
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with path.open("wb") as sink, pa.ipc.new_file(sink, schema, options=options) as file:
        for block in _blocks(batches, layout, schema):
            for batch in splitter.split(block):
                file.write_batch(batch)
            on_progress(splitter.rows, splitter.failed)
    return splitter.result()


class _Splitter:
    """Assigns rows to slots, and counts them by class and slot."""

    def __init__(self, layout: SplitLayout, number: int) -> None:
        self._layout = layout
        self._random = seeded_generator(SEED, number)
        self._round_robin = RoundRobin(layout.training_slots, self._random)
        self._codes: dict[Scalar | None, int] = {}  # by class, in the order of their first rows
        self._quotas: dict[int, Quota] = {}
        self._counts: list[Array] = []
        self._missing: set[str] = set()
        self.rows = self.failed = 0

    def split(self, block: Any) -> Iterator[Any]:
        """Yield one record batch for each slot."""
        block = self._with_target(block)
        self._missing |= {f.name for f in self._layout.features if self._has_missing(block, f.name)}
        codes = self._class_codes(block)
        slots = self._assign(codes)
        for slot in range(self._layout.slots):
            yield block.filter(pa.array(slots == slot))
        for code in np.unique(codes).tolist():
            self._counts[code] += np.bincount(slots[codes == code], minlength=self._layout.slots)
        self.rows += len(codes)

    def result(self) -> SplitCounts:
        counts = tuple((v, tuple(self._counts[code].tolist())) for v, code in self._codes.items())
        return SplitCounts(self.rows, self.failed, counts, tuple(sorted(self._missing)))

    def _has_missing(self, block: Any, feature: str) -> bool:
        if feature in self._missing:
            return False  # is known
        column = block.column(feature)
        is_float = pa.types.is_floating(column.type)
        return bool(column.null_count or (is_float and pc.any(pc.is_nan(column)).as_py()))

    def _with_target(self, block: Any) -> Any:
        target = block.column(self._layout.target.name)
        has_target = target.is_valid()
        if pa.types.is_floating(target.type):
            has_target = pc.and_(has_target, pc.invert(pc.fill_null(pc.is_nan(target), True)))
        complete = block.filter(has_target)
        self.failed += block.num_rows - complete.num_rows
        return complete

    def _class_codes(self, block: Any) -> Array:
        if not self._layout.labelled:
            return self._encode([None], np.zeros(block.num_rows, dtype=np.int64))
        encoded = block.column(self._layout.target.name).dictionary_encode()
        return self._encode(encoded.dictionary.to_pylist(), encoded.indices.to_numpy())

    def _encode(self, values: list[Scalar | None], indices: Array) -> Array:
        for value in values:
            if value not in self._codes:
                self._codes[value] = len(self._codes)
                self._counts.append(np.zeros(self._layout.slots, dtype=np.int64))
        if len(self._codes) > MAX_CLASSES:
            name = self._layout.target.name
            raise Refused(
                f"the target {name!r} has more than {MAX_CLASSES} classes; "
                "if it holds numbers, use a regressor"
            )
        return np.array([self._codes[v] for v in values], dtype=np.int64)[indices]

    def _assign(self, codes: Array) -> Array:
        validation = self._validation_mask(codes)
        strata = codes if self._layout.stratified else np.zeros(len(codes), dtype=np.int64)
        slots = np.full(len(codes), VALIDATION_SLOT + 1, dtype=np.int64)
        if self._layout.training_slots > 1:
            slots[~validation] += self._round_robin.assign(strata[~validation])
        slots[validation] = VALIDATION_SLOT
        return slots

    def _validation_mask(self, codes: Array) -> Array:
        if not self._layout.validation:
            return np.zeros(len(codes), dtype=np.bool_)
        share = round(self._layout.validation * SHARE_UNITS)
        for code in np.unique(codes).tolist():
            if code not in self._quotas:  # random phase: rounding errors cancel out over partitions
                phase = int(self._random.integers(SHARE_UNITS))
                self._quotas[code] = Quota(share, SHARE_UNITS, phase=phase)
        return sample_mask(codes, self._quotas, self._random)


def _blocks(batches: Iterable[Any], layout: SplitLayout, schema: Any) -> Iterator[Any]:
    """Blocks of equal size, independent of the sizes of the batches."""
    block_rows = max(1, min(BLOCK_ROWS, BLOCK_CELLS // len(schema.names)))
    pending: list[Any] = []
    rows = 0
    for batch in batches:
        pending.append(_with_types(batch, layout, schema))
        rows += batch.num_rows
        if rows >= block_rows:
            rest = pa.concat_batches(pending)
            while rest.num_rows >= block_rows:
                yield rest.slice(0, block_rows)
                rest = rest.slice(block_rows)
            pending, rows = [rest], rest.num_rows
    if rows:
        yield pa.concat_batches(pending)


def _with_types(batch: Any, layout: SplitLayout, schema: Any) -> Any:
    """The columns of the layout in its types. Raises `Refused`, naming the column."""
    names = set(batch.schema.names)
    for name in schema.names:
        if name not in names:
            raise Refused(f"it lacks the column {name!r}, which other partitions have")
    if extra := sorted(names - set(schema.names)):
        raise Refused(f"it has the column {extra[0]!r}, which other partitions do not have")
    columns = (*layout.features, layout.target)
    return pa.record_batch([_column(f, batch.column(f.name)) for f in columns], schema=schema)


def _column(feature: Feature, column: Any) -> Any:
    kind = plain_type(column.type)
    try:
        same = pa.types.is_null(kind) or feature_dtype(kind) == feature.dtype
        widened = feature.dtype == "float64" and pa.types.is_integer(kind)
        if same or widened:
            return to_dtype(column, feature.dtype)
    except TypeNotSupported:
        pass
    except pa.ArrowException as error:
        raise Refused(f"its column {feature.name!r} does not fit {feature.dtype}: {error}") from error
    raise Refused(f"its column {feature.name!r} holds {kind}, in other partitions {feature.dtype}")
