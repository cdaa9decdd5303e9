"""The rows that parity is measured on: the example, and rows on which runtimes are known to disagree."""

from __future__ import annotations

from typing import Any

import numpy as np

from registry.rows import Array, Rows
from registry.signature import Input, Signature
from service.compiler.measure import parity, tree_thresholds
from service.compiler.measure.parity import AnswerRows
from service.compiler.measure.tree_thresholds import SplitPoints
from service.compiler.signature.acceptance import UNKNOWN_CATEGORY
from service.compiler.signature.inputs import pack_rows, with_value

BEYOND_FLOAT32 = 1e39
MAX_EXAMPLE_ROWS, RANDOM_ROWS, WIDE_ROWS, MISSING_ROWS, UNKNOWN_ROWS = 1000, 500, 200, 200, 100
EXTREME_ROWS = 64
MAX_ACCEPTED_ROWS = 64
"""Of each kind: a published graph may take a tenth of a second per row."""
MAX_THRESHOLDS = 200
"""Thresholds that are compared, each at itself and one ulp (of float32 and of float64) to both sides."""


def rows_by_kind(model: Any, signature: Signature, example: Rows | None) -> dict[str, Rows]:
    """Rows by kind; the same rows for the same model, because the generator has a fixed seed."""
    random = np.random.default_rng(0)
    inputs = signature.inputs
    splits = tree_thresholds.split_points(model, inputs)
    values = _known_values(inputs, example, splits.on_features())
    plain = [_random_column(i, v, random) for i, v in zip(inputs, values, strict=True)]
    kinds: dict[str, Rows] = {}
    if example is not None:
        kinds["example"] = example.take(slice(0, MAX_EXAMPLE_ROWS))
    kinds["random"] = pack_rows(inputs, plain)
    wide = [_wide_column(i, v, p, random) for i, v, p in zip(inputs, values, plain, strict=True)]
    kinds["wide"] = pack_rows(inputs, wide)
    base = _shuffled(plain if example is None else _columns(example, inputs), random)
    if any(i.nullable for i in inputs):
        missing = [_with_missing(i, c[:MISSING_ROWS], random) for i, c in zip(inputs, base, strict=True)]
        kinds["missing"] = pack_rows(inputs, missing)
    if any(map(_takes_unknown, inputs)):
        unknown = [_with_unknown(i, c[:UNKNOWN_ROWS], random) for i, c in zip(inputs, base, strict=True)]
        kinds["unknown category"] = pack_rows(inputs, unknown)
    if any(i.enforced for i in inputs):
        kinds["extreme"] = _extreme_rows(inputs, base, random)
    if (at_thresholds := _rows_at_thresholds(inputs, base, splits, random)) is not None:
        kinds["threshold"] = at_thresholds
    return kinds


def _columns(rows: Rows, inputs: tuple[Input, ...]) -> list[Array]:
    if rows.columns is not None:
        return list(rows.columns)
    assert rows.matrix is not None
    return [rows.matrix[:, i] for i in range(len(inputs))]


def _known_values(inputs: tuple[Input, ...], example: Rows | None, thresholds: Array) -> list[Array]:
    """Per feature: the example's values, else the categories, else the thresholds on it.

    `thresholds`: [m, 2] (feature, value).
    """
    per_feature = []
    for index, feature in enumerate(inputs):
        if example is not None:
            column = _columns(example, inputs)[index]
            values = column[[v is not None and v == v for v in column.tolist()]]
        elif feature.categories:
            values = np.array(feature.categories, dtype=object if feature.dtype == "string" else np.float64)
        else:
            values = thresholds[thresholds[:, 0] == index, 1]
        per_feature.append(values)
    return per_feature


def _range(feature: Input, values: Array) -> tuple[float, float]:
    finite = values[np.isfinite(values.astype(np.float64))] if len(values) else values
    seen_low, seen_high = (float(finite.min()), float(finite.max())) if len(finite) else (-3.0, 3.0)
    minimum, maximum = feature.minimum, feature.maximum
    if feature.enforced and minimum is not None and maximum is not None:  # of the type, not of the example
        return max(minimum, seen_low), min(maximum, seen_high)
    low = minimum if minimum is not None else seen_low
    high = maximum if maximum is not None else seen_high
    return (low, high) if high > low else (low - 1.0, low + 1.0)


def _random_column(feature: Input, values: Array, random: np.random.Generator) -> Array:
    """Half known values in any order, half numbers between them."""
    if feature.dtype == "string":
        choices = values if len(values) else np.array(["text"], dtype=object)
        return random.choice(choices, RANDOM_ROWS).astype(object)
    low, high = _range(feature, values)
    column = random.uniform(low, high, RANDOM_ROWS)
    if len(values):
        pick_known = random.random(RANDOM_ROWS) < 0.5
        column = np.where(pick_known, random.choice(values, RANDOM_ROWS), column)
    if feature.categories:
        column = random.choice(np.array(feature.categories, dtype=np.float64), RANDOM_ROWS)
    return _in_dtype(feature, column)


def _wide_column(feature: Input, values: Array, plain: Array, random: np.random.Generator) -> Array:
    """Ten times the range, and magnitudes from a thousandth to a million times it."""
    if feature.dtype == "string" or feature.dtype == "bool" or feature.categories:
        return plain[:WIDE_ROWS]
    low, high = _range(feature, values)
    span = high - low
    near = random.uniform(low - 10 * span, high + 10 * span, WIDE_ROWS)
    far = random.choice([-1.0, 1.0], WIDE_ROWS) * span * 10.0 ** random.uniform(-3, 6, WIDE_ROWS)
    return _in_dtype(feature, np.where(random.random(WIDE_ROWS) < 0.5, near, far))


def _in_dtype(feature: Input, column: Array) -> Array:
    """float64 numbers rounded to values that the feature's dtype can hold."""
    if feature.dtype == "int64":
        whole = np.rint(column)
        return np.clip(whole, feature.minimum, feature.maximum) if feature.enforced else whole
    if feature.dtype == "bool":
        return (column > 0.5).astype(np.float64)
    return column.astype(np.float32).astype(np.float64) if feature.dtype == "float32" else column


def _shuffled(columns: list[Array], random: np.random.Generator) -> list[Array]:
    size = max(MISSING_ROWS, UNKNOWN_ROWS, MAX_THRESHOLDS)
    return [c[random.integers(0, len(c), size)] for c in columns]


def _with_missing(feature: Input, column: Array, random: np.random.Generator) -> Array:
    if not feature.nullable:
        return column
    missing = random.random(len(column)) < 0.5
    column = column.copy() if feature.dtype == "string" else column.astype(np.float64)
    column[missing] = None if feature.dtype == "string" else np.nan
    return column


def refuses_beyond_float32(answer: AnswerRows, accepted: Rows, inputs: tuple[Input, ...]) -> bool:
    """Whether the model that answers `accepted` refuses a number that becomes infinite in float32."""
    names = [i.name for i in inputs if i.dtype == "float64" and not i.categories]
    if not names:
        return False
    row = accepted.take(slice(0, 1))
    for name in names:
        row = with_value(row, inputs, name, BEYOND_FLOAT32)
    try:
        answer(row)
    except Exception:  # an estimator may raise anything for rows it does not accept
        return True
    return False


def _takes_unknown(feature: Input) -> bool:
    """Whether callers may send a value outside the categories. Every boolean is one of them."""
    return bool(feature.categories) and not feature.closed and feature.dtype != "bool"


def _with_unknown(feature: Input, column: Array, random: np.random.Generator) -> Array:
    if not _takes_unknown(feature):
        return column
    column = column.copy()
    other = (
        UNKNOWN_CATEGORY if feature.dtype == "string" else max(float(c) for c in feature.categories or ()) + 1
    )
    column[random.random(len(column)) < 0.5] = other
    return column


def _extreme_rows(inputs: tuple[Input, ...], base: list[Array], random: np.random.Generator) -> Rows:
    """Integers at their enforced bounds: all features at once, then some of each row; then between them."""
    columns = [
        _extreme_column(i, c[:EXTREME_ROWS], random) if i.enforced else c[:EXTREME_ROWS]
        for i, c in zip(inputs, base, strict=True)
    ]
    return pack_rows(inputs, columns)


def _extreme_column(feature: Input, column: Array, random: np.random.Generator) -> Array:
    low, high = feature.minimum, feature.maximum
    assert low is not None
    assert high is not None
    near_bounds = random.choice(np.array([low, high, low + 1, high - 1]), EXTREME_ROWS)
    extreme = np.where(random.random(EXTREME_ROWS) < 0.5, near_bounds, column)
    extreme[:2] = low, high
    extreme[EXTREME_ROWS // 2 :] = np.rint(random.uniform(low, high, EXTREME_ROWS // 2))
    return extreme


def accepted_rows(answer: AnswerRows, kinds: dict[str, Rows]) -> Rows:
    """Some of the example's rows, of random rows and of rows at the bounds of integers: the accepted ones."""
    kinds_of_graphs = ("example", "random", "extreme")
    some: dict[str, Rows] = {k: _evenly_spaced(kinds[k]) for k in kinds_of_graphs if k in kinds}
    blocks = parity.reference(answer, some)
    return concatenated([b.rows for b in blocks])


def _evenly_spaced(rows: Rows) -> Rows:
    return rows.take(np.unique(np.linspace(0, len(rows) - 1, MAX_ACCEPTED_ROWS).astype(int)))


def concatenated(parts: list[Rows]) -> Rows:
    """The rows of all parts, in order; at least one part."""
    if parts[0].matrix is not None:
        return Rows(matrix=np.concatenate([p.matrix for p in parts if p.matrix is not None]))
    columns = [p.columns for p in parts if p.columns is not None]
    return Rows(columns=tuple(np.concatenate(c) for c in zip(*columns, strict=True)))


def _rows_at_thresholds(
    inputs: tuple[Input, ...], base: list[Array], splits: SplitPoints, random: np.random.Generator
) -> Rows | None:
    """Rows that differ from a base row in one feature: a threshold, or a number next to it."""
    points = splits.sample(MAX_THRESHOLDS, random)
    if not len(points):
        return None
    split_feature, values = points[:, 0].astype(int), with_neighbours(points[:, 1])
    columns = []
    for index, (feature, column) in enumerate(zip(inputs, base, strict=True)):
        tiled = np.concatenate([column[: len(points)]] * len(values))
        if feature.dtype != "string":
            at_threshold = np.tile(split_feature == index, len(values))
            tiled = np.where(at_threshold, np.concatenate(values), tiled.astype(float))
            tiled = _in_dtype(feature, tiled)
        columns.append(tiled)
    return pack_rows(inputs, columns)


def with_neighbours(values: Array) -> list[Array]:
    """`values`, and the next float64 and float32 numbers below and above each."""
    single = values.astype(np.float32)
    return [
        values,
        np.nextafter(values, -np.inf),
        np.nextafter(values, np.inf),
        single.astype(np.float64),
        np.nextafter(single, np.float32(-np.inf)).astype(np.float64),
        np.nextafter(single, np.float32(np.inf)).astype(np.float64),
    ]
