"""The rows that parity is measured on: what the model was shown, and where runtimes are known to part."""

from __future__ import annotations

from typing import Any

import numpy as np

from registry.rows import Array, Rows
from registry.signature import Input, Signature
from service.compiler.measure import inverse_transforms, tree_thresholds
from service.compiler.measure.inverse_transforms import Ways
from service.compiler.signature.describe import UNKNOWN, pack

EXAMPLE, RANDOM, WIDE, MISSING, UNSEEN = 1000, 500, 200, 200, 100
SPLITS = 200
"""So many thresholds are tried, each at itself and one ulp (of float32 and of float64) to both sides."""


def kinds(model: Any, signature: Signature, example: Rows | None) -> dict[str, Rows]:
    """Rows by kind, the same ones for the same model: the generator has a fixed seed."""
    random = np.random.default_rng(0)
    inputs = signature.inputs
    splits = tree_thresholds.thresholds(model)
    found = inverse_transforms.ways(model, inputs)
    as_given = [way if way is not None and not way.steps else None for way in found]
    known = _known_values(inputs, example, inverse_transforms.back(as_given, splits))
    plain = [_plain(i, values, random) for i, values in zip(inputs, known, strict=True)]
    made: dict[str, Rows] = {}
    if example is not None:
        made["example"] = example.take(slice(0, EXAMPLE))
    made["random"] = pack(inputs, plain)
    wide = [_wide(i, v, p, random) for i, v, p in zip(inputs, known, plain, strict=True)]
    made["wide"] = pack(inputs, wide)
    base = _shuffled(inputs, plain if example is None else _columns(example, inputs), random)
    if any(i.nullable for i in inputs):
        made["missing"] = pack(
            inputs, [_holed(i, c[:MISSING], random) for i, c in zip(inputs, base, strict=True)]
        )
    if any(i.categories and not i.closed for i in inputs):
        unseen = [_unseen(i, c[:UNSEEN], random) for i, c in zip(inputs, base, strict=True)]
        made["unknown category"] = pack(inputs, unseen)
    if (beside := _at_splits(inputs, base, found, splits, random)) is not None:
        made["threshold"] = beside
    return made


def _columns(rows: Rows, inputs: tuple[Input, ...]) -> list[Array]:
    if rows.columns is not None:
        return list(rows.columns)
    assert rows.matrix is not None
    return [rows.matrix[:, i] for i in range(len(inputs))]


def _known_values(inputs: tuple[Input, ...], example: Rows | None, splits: Array) -> list[Array]:
    """What is known of each column: the example's values, else categories, else the thresholds on it.

    `splits`: [m, 2], feature and value.
    """
    known = []
    for index, given in enumerate(inputs):
        if example is not None:
            column = _columns(example, inputs)[index]
            values = column[[v is not None and v == v for v in column.tolist()]]
        elif given.categories:
            values = np.array(given.categories, dtype=object if given.dtype == "string" else np.float64)
        else:
            values = splits[splits[:, 0] == index, 1]
        known.append(values)
    return known


def _range(given: Input, values: Array) -> tuple[float, float]:
    finite = values[np.isfinite(values.astype(np.float64))] if len(values) else values
    low = given.minimum if given.minimum is not None else float(finite.min()) if len(finite) else -3.0
    high = given.maximum if given.maximum is not None else float(finite.max()) if len(finite) else 3.0
    return (low, high) if high > low else (low - 1.0, low + 1.0)


def _plain(given: Input, values: Array, random: np.random.Generator) -> Array:
    """Half seen values in any order, half anything between them."""
    if given.dtype == "string":
        choices = values if len(values) else np.array(["text"], dtype=object)
        return random.choice(choices, RANDOM).astype(object)
    low, high = _range(given, values)
    between = random.uniform(low, high, RANDOM)
    column = (
        np.where(random.random(RANDOM) < 0.5, random.choice(values, RANDOM), between)
        if len(values)
        else between
    )
    if given.categories:
        column = random.choice(np.array(given.categories, dtype=np.float64), RANDOM)
    return _whole(given, column)


def _wide(given: Input, values: Array, plain: Array, random: np.random.Generator) -> Array:
    """Ten times the range, and magnitudes from a thousandth to a million times it."""
    if given.dtype == "string" or given.dtype == "bool" or given.categories:
        return plain[:WIDE]
    low, high = _range(given, values)
    span = high - low
    near = random.uniform(low - 10 * span, high + 10 * span, WIDE)
    far = random.choice([-1.0, 1.0], WIDE) * span * 10.0 ** random.uniform(-3, 6, WIDE)
    return _whole(given, np.where(random.random(WIDE) < 0.5, near, far))


def _whole(given: Input, column: Array) -> Array:
    """Numbers that the column's dtype can hold."""
    if given.dtype == "int64":
        return np.rint(column)
    if given.dtype == "bool":
        return (column > 0.5).astype(np.float64)
    return column.astype(np.float32).astype(np.float64) if given.dtype == "float32" else column


def _shuffled(inputs: tuple[Input, ...], columns: list[Array], random: np.random.Generator) -> list[Array]:
    size = max(MISSING, UNSEEN, SPLITS)
    return [c[random.integers(0, len(c), size)] for c in columns]


def _holed(given: Input, column: Array, random: np.random.Generator) -> Array:
    if not given.nullable:
        return column
    holes = random.random(len(column)) < 0.5
    column = column.copy() if given.dtype == "string" else column.astype(np.float64)
    column[holes] = None if given.dtype == "string" else np.nan
    return column


def _unseen(given: Input, column: Array, random: np.random.Generator) -> Array:
    if not given.categories or given.closed:
        return column
    column = column.copy()
    other = UNKNOWN if given.dtype == "string" else max(float(c) for c in given.categories) + 1
    column[random.random(len(column)) < 0.5] = other
    return column


def _at_splits(
    inputs: tuple[Input, ...], base: list[Array], found: Ways, splits: Array, random: np.random.Generator
) -> Rows | None:
    """Rows that differ from a base row in one feature: a threshold, or the next number beside it."""
    reachable = [column for column, way in enumerate(found) if way is not None]
    splits = splits[np.isin(splits[:, 0], reachable)]
    chosen = inverse_transforms.back(found, splits[random.permutation(len(splits))[:SPLITS]])
    if not len(chosen):
        return None
    feature, values = chosen[:, 0].astype(int), _beside(chosen[:, 1])
    columns = []
    for number, (given, column) in enumerate(zip(inputs, base, strict=True)):
        own = np.concatenate([column[: len(chosen)]] * len(values))
        if given.dtype != "string":
            own = np.where(np.tile(feature == number, len(values)), np.concatenate(values), own.astype(float))
            own = _whole(given, own)
        columns.append(own)
    return pack(inputs, columns)


def _beside(value: Array) -> list[Array]:
    single = value.astype(np.float32)
    return [
        value,
        np.nextafter(value, -np.inf),
        np.nextafter(value, np.inf),
        single.astype(np.float64),
        np.nextafter(single, np.float32(-np.inf)).astype(np.float64),
        np.nextafter(single, np.float32(np.inf)).astype(np.float64),
    ]
