"""One partition of the input dealt into slots: the rows held out for validation, and those to train on.

Runs in the worker, once per partition, before anything is fitted: no code of a model is near. The file it
writes is what all later steps read, typed alike in each partition. Batches of slot k are those whose index
modulo the number of slots is k; slot 0 is held out.
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
from registry.signature import DType, Scalar
from service.compiler import example
from service.compiler.fit.fit_records import SEED, Feature
from service.compiler.fit.sampling import PARTS, Dealer, Quota, pick, random

BLOCK_ROWS, BLOCK_CELLS = 1 << 16, 1 << 21
"""Rows are dealt by so many, fewer of a wide table; each slot gets a batch of every block."""
MAX_CLASSES = 10_000
HELD_OUT = 0

ARROW: dict[DType, Any] = {
    "float64": pa.float64(),
    "float32": pa.float32(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "string": pa.string(),
}


class Layout(msgspec.Struct, frozen=True):
    """How every partition is dealt."""

    features: tuple[Feature, ...]
    target: Feature
    labelled: bool  # a classifier's: the target's values are classes
    validation: float = 0.0  # this share of each class is held out; of all rows for a regressor
    hands: int = 1  # slots to train on: 1 keeps the partition together
    by_class: bool = False  # each hand gets each class's share

    @property
    def slots(self) -> int:
        return 1 + self.hands


class Dealt(msgspec.Struct, frozen=True):
    """What a partition holds. `counts`: rows of each class (one None without classes) in each slot."""

    rows: int
    failed: int  # rows without a target
    counts: tuple[tuple[Scalar | None, tuple[int, ...]], ...]


def layout_features(names: Iterable[str], types: Iterable[Any]) -> tuple[Feature, ...]:
    """Columns as features. Raises `Refused` for a column of a type that none can have."""
    found = []
    for name, kind in zip(names, types, strict=True):
        try:
            found.append(Feature(name, example.dtype_of(kind)))
        except KeyError as error:
            message = f"the column {name!r} holds {kind}, which no feature can be; exclude it"
            raise Refused(message) from error
    return tuple(found)


def deal(
    batches: Iterable[Any], layout: Layout, number: int, path: Path, seen: Callable[[int, int], None]
) -> Dealt:
    """Write the partition to `path`. `seen` is called with the rows done and failed so far.

    Raises `Refused`, naming the column, for a partition that is not like the others.
    """
    table = _Table(layout, number)
    columns = (*layout.features, layout.target)
    schema = pa.schema([(f.name, ARROW[f.dtype]) for f in columns])
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with path.open("wb") as sink, pa.ipc.new_file(sink, schema, options=options) as file:
        for block in _blocks(batches, layout, schema):
            for batch in table.dealt(block):
                file.write_batch(batch)
            seen(table.rows, table.failed)
    return table.result()


class _Table:
    """Counts what it deals."""

    def __init__(self, layout: Layout, number: int) -> None:
        self._layout = layout
        self._random = random(SEED, number)
        self._dealer = Dealer(layout.hands, self._random)
        self._classes: dict[Scalar | None, int] = {}  # codes within this partition, in the order they come
        self._quotas: dict[int, Quota] = {}
        self._counts: list[Array] = []
        self.rows = self.failed = 0

    def dealt(self, block: Any) -> Iterator[Any]:
        """The block's rows, a batch for each slot."""
        block = self._with_target(block)
        codes = self._codes(block)
        slots = self._slots(codes)
        for slot in range(self._layout.slots):
            yield block.filter(pa.array(slots == slot))
        for code in np.unique(codes).tolist():
            self._counts[code] += np.bincount(slots[codes == code], minlength=self._layout.slots)
        self.rows += len(codes)

    def result(self) -> Dealt:
        counts = tuple((v, tuple(self._counts[code].tolist())) for v, code in self._classes.items())
        return Dealt(self.rows, self.failed, counts)

    def _with_target(self, block: Any) -> Any:
        target = block.column(self._layout.target.name)
        there = target.is_valid()
        if pa.types.is_floating(target.type):
            there = pc.and_(there, pc.invert(pc.fill_null(pc.is_nan(target), True)))
        kept = block.filter(there)
        self.failed += block.num_rows - kept.num_rows
        return kept

    def _codes(self, block: Any) -> Array:
        if not self._layout.labelled:
            return self._coded([None], np.zeros(block.num_rows, dtype=np.int64))
        encoded = block.column(self._layout.target.name).dictionary_encode()
        return self._coded(encoded.dictionary.to_pylist(), encoded.indices.to_numpy())

    def _coded(self, values: list[Scalar | None], indices: Array) -> Array:
        for value in values:
            if value not in self._classes:
                self._classes[value] = len(self._classes)
                self._counts.append(np.zeros(self._layout.slots, dtype=np.int64))
        if len(self._classes) > MAX_CLASSES:
            name = self._layout.target.name
            raise Refused(f"the target {name!r} has more than {MAX_CLASSES} classes: is it a regression?")
        return np.array([self._classes[v] for v in values], dtype=np.int64)[indices]

    def _slots(self, codes: Array) -> Array:
        held = self._held_out(codes)
        hands = self._layout.hands
        dealt = codes if self._layout.by_class else np.zeros(len(codes), dtype=np.int64)
        slots = np.full(len(codes), HELD_OUT + 1, dtype=np.int64)
        if hands > 1:
            slots[~held] += self._dealer.deal(dealt[~held])
        slots[held] = HELD_OUT
        return slots

    def _held_out(self, codes: Array) -> Array:
        if not self._layout.validation:
            return np.zeros(len(codes), dtype=np.bool_)
        most = round(self._layout.validation * PARTS)
        for code in np.unique(codes).tolist():
            if code not in self._quotas:  # rounded up in some partitions, down in others: right in the sum
                self._quotas[code] = Quota(most, PARTS, phase=int(self._random.integers(PARTS)))
        return pick(codes, self._quotas, self._random)


def _blocks(batches: Iterable[Any], layout: Layout, schema: Any) -> Iterator[Any]:
    """Blocks of one size, whatever the sizes of the batches."""
    most = max(1, min(BLOCK_ROWS, BLOCK_CELLS // len(schema.names)))
    waiting: list[Any] = []
    rows = 0
    for batch in batches:
        waiting.append(_typed(batch, layout, schema))
        rows += batch.num_rows
        if rows >= most:
            whole = pa.concat_batches(waiting)
            while whole.num_rows >= most:
                yield whole.slice(0, most)
                whole = whole.slice(most)
            waiting, rows = [whole], whole.num_rows
    if rows:
        yield pa.concat_batches(waiting)


def _typed(batch: Any, layout: Layout, schema: Any) -> Any:
    """The columns that all partitions have, of their types. Raises `Refused`, naming the column."""
    known = set(batch.schema.names)
    for name in schema.names:
        if name not in known:
            raise Refused(f"it lacks the column {name!r}, which other partitions have")
    if extra := sorted(known - set(schema.names)):
        raise Refused(f"it has the column {extra[0]!r}, which other partitions do not have")
    columns = (*layout.features, layout.target)
    return pa.record_batch([_column(f, batch.column(f.name)) for f in columns], schema=schema)


def _column(feature: Feature, column: Any) -> Any:
    wanted = ARROW[feature.dtype]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    try:
        alike = pa.types.is_null(kind) or example.dtype_of(kind) == feature.dtype
        widened = feature.dtype == "float64" and pa.types.is_integer(kind)
        if alike or widened:
            return column.cast(wanted)
    except (KeyError, pa.ArrowException):
        pass
    raise Refused(f"its column {feature.name!r} holds {kind}, in other partitions {feature.dtype}")
