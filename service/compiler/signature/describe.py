"""From a fitted estimator, an example and what the user corrects, to a version's signature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from registry.errors import Refused
from registry.rows import Array, Outputs, Rows
from registry.signature import NUMERIC, SAFE, DType, Input, Scalar, Signature, Task, most, numeric
from service.compiler import example
from service.compiler.example import Example
from service.compiler.signature import answers, categories, row_layout
from service.compiler.signature import corrections as given
from service.compiler.signature.estimator import arrange

MAX_CATEGORIES = 100
"""An open string column with more distinct values than this in the example lists none."""
PROBED = 16
"""So many example rows are answered to see what the outputs look like."""
UNKNOWN = "a value the model has never seen"
WIDE = 10_000
"""A transformed vector longer than this is worth a warning."""


@dataclass(frozen=True)
class Described:
    """A signature, the example's rows as the model takes them, and what the user should know."""

    signature: Signature
    rows: Rows | None  # the example's, in the signature's order, without those the model refuses
    truth: pa.Array | None  # the true values of those rows, where the example has them
    warnings: list[str]


def describe(model: Any, sample: Example | None, corrections: given.Corrections) -> Described:
    """Raises `Refused`, naming the estimator or the feature, when `model` cannot be served as asked."""
    row_layout.require_servable(model)
    kind = row_layout.kind(model)
    warnings: list[str] = []
    names = _names(model, kind, sample, corrections, warnings)
    silent: DType | None = "string" if kind == "texts" else None
    inputs = tuple(describe_input(name, sample, corrections.dtype(name) or silent) for name in names)
    inputs = corrections.apply(_with_categories(inputs, categories.known(model, names), sample))
    task = corrections.pick_task(row_layout.name(model), answers.tasks(model))
    rows = table(inputs, sample) if sample is not None else None
    truth = sample.target if sample is not None else None
    if rows is not None:
        inputs, kept = _kept(model, kind, task, inputs, rows, warnings)
        rows = rows.take(kept)
        truth = truth.filter(pa.array(kept)) if truth is not None else None
    probe = rows.take(slice(0, PROBED)) if rows is not None else _probe(model, kind, task, inputs)
    answered = _answer(model, kind, task, inputs, probe)
    if "vector" in answered and answered["vector"].shape[1] > WIDE:
        warnings.append(f"each answer holds {answered['vector'].shape[1]} numbers")
    inputs = _measure_closed(model, kind, task, inputs, probe.take(slice(0, 1)))
    outputs = corrections.check_outputs(answers.outputs(model, task, answered))
    return Described(Signature(task, inputs, outputs), rows, truth, warnings)


def _names(
    model: Any,
    kind: row_layout.Kind,
    sample: Example | None,
    corrections: given.Corrections,
    warnings: list[str],
) -> list[str]:
    """The features in the model's order. Raises `Refused` when the example does not hold them all."""
    fitted = _fitted_names(model, kind)
    if fitted is not None:
        corrections.require_known(fitted)
        if sample is not None:
            _require_columns(model, fitted, sample, warnings)
        return fitted
    width = 1 if kind in ("texts", "labels") else row_layout.width(model)
    if sample is not None:
        names = list(sample.columns)
        numbered = [f"x{i}" for i in range(width or 0)]
        if width is not None and len(names) != width and numbered and set(numbered) <= set(names):
            _require_columns(model, numbered, sample, warnings)
            names = numbered
        _require_width(model, width, names, "the example has the columns")
        corrections.require_known(names)
        return names
    if corrections.names and (width is None or len(corrections.names) == width):
        return corrections.names
    if width is None:
        raise Refused(f"{row_layout.name(model)} does not tell its features; publish it with an example")
    names = (
        ["text"] if kind == "texts" else ["value"] if kind == "labels" else [f"x{i}" for i in range(width)]
    )
    if len(corrections.names) > width:
        _require_width(model, width, corrections.names, "the signature names")
    corrections.require_known(names)
    return names


def _fitted_names(model: Any, kind: row_layout.Kind) -> list[str] | None:
    if kind == "records":
        vocabulary = getattr(row_layout.first(model), "feature_names_", None)
        separator = getattr(row_layout.first(model), "separator", "=")
        return None if vocabulary is None else list(dict.fromkeys(n.split(separator)[0] for n in vocabulary))
    names = row_layout.names(model)
    return None if names is None else list(names)


def _require_columns(model: Any, names: list[str], sample: Example, warnings: list[str]) -> None:
    if missing := [n for n in names if n not in sample.columns]:
        raise Refused(
            f"the example lacks {_list(missing)}, which {row_layout.name(model)} was fitted with; "
            f"it has {_list(list(sample.columns))}"
        )
    if extra := [n for n in sample.columns if n not in names]:
        warnings.append(f"the example's {_list(extra)} is no feature of the model and was left out")


def _require_width(model: Any, width: int | None, names: list[str], what: str) -> None:
    if width is not None and len(names) != width:
        raise Refused(
            f"{row_layout.name(model)} was fitted with {width} features, "
            f"{what} {_list(names)} ({len(names)}); "
            "if one of them holds the true value, name it as the target"
        )


def _list(names: list[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"


def describe_input(name: str, sample: Example | None, wanted: DType | None) -> Input:
    """What the example's column, in the dtype that is wanted or else its own, tells."""
    if sample is None:
        return Input(name, wanted or "float64")
    dtype = wanted or sample.dtype(name)
    column = example.cast(name, sample.columns[name], dtype)
    present = column.drop_null()
    first = (present if column[0].as_py() is None else column)[:1].to_pylist()
    values = (
        np.asarray(present.to_numpy(zero_copy_only=False), dtype=np.float64) if dtype in NUMERIC else None
    )
    finite = values[np.isfinite(values)] if values is not None and dtype != "bool" else np.empty(0)
    return Input(
        name,
        dtype,
        nullable=sample.missing(name),
        minimum=float(finite.min()) if len(finite) else None,
        maximum=float(finite.max()) if len(finite) else None,
        example=first[0]
        if first and not (isinstance(first[0], float) and not math.isfinite(first[0]))
        else None,
    )


def _with_categories(
    inputs: tuple[Input, ...], known: dict[str, tuple[Scalar, ...]], sample: Example | None
) -> tuple[Input, ...]:
    """The encoders' categories; for other string columns the example's distinct values."""
    return tuple(_categorised(i, known.get(i.name), sample) for i in inputs)


def _categorised(given: Input, known: tuple[Scalar, ...] | None, sample: Example | None) -> Input:
    if known and all(isinstance(v, str) for v in known):
        return msgspec.structs.replace(given, categories=known, dtype=given.dtype if sample else "string")
    if known:
        return msgspec.structs.replace(given, categories=known)
    if sample is not None and given.dtype == "string":
        seen = sorted(set(sample.columns[given.name].drop_null().to_pylist()))
        if len(seen) <= MAX_CATEGORIES and len(seen) < len(sample):  # all different is text, not categories
            return msgspec.structs.replace(given, categories=tuple(seen))
    return given


def table(inputs: tuple[Input, ...], sample: Example) -> Rows:
    """The example's rows in the signature's order and dtypes. Raises `Refused` for integers that the model
    would get as their neighbours."""
    cells = [example.cast(i.name, sample.columns[i.name], i.dtype) for i in inputs]
    in_matrix = numeric(inputs)
    for feature, column in zip(inputs, cells, strict=True):
        if feature.dtype == "int64" and most(feature, in_matrix) == SAFE:
            example.require_safe(feature.name, column)
    return pack(inputs, [example.to_numpy(c, i.dtype) for i, c in zip(inputs, cells, strict=True)])


def pack(inputs: tuple[Input, ...], columns: list[Any]) -> Rows:
    if numeric(inputs):
        return Rows(matrix=np.column_stack(columns).astype(np.float64))
    return Rows(columns=tuple(columns))


def _kept(
    model: Any, kind: row_layout.Kind, task: Task, inputs: tuple[Input, ...], rows: Rows, warnings: list[str]
) -> tuple[tuple[Input, ...], Array]:
    """Which example rows to use (a mask). A column is nullable only if the model takes its missing values."""
    missing = [_missing(rows, i) for i in range(len(inputs))]
    holed = [i.name for i, holes in zip(inputs, missing, strict=True) if holes.any()]
    everything = np.ones(len(rows), dtype=bool)
    unwanted = any(holes.any() and not i.nullable for i, holes in zip(inputs, missing, strict=True))
    if not holed or (not unwanted and _runs(model, kind, task, inputs, _with_gaps(rows, missing))):
        return inputs, everything
    whole = ~np.any(missing, axis=0)
    if not whole.any():
        raise Refused(f"every row of the example misses a value that the model needs, in {_list(holed)}")
    base = rows.take(np.flatnonzero(whole)[:1])
    refused = [
        i.name
        for i in inputs
        if i.name in holed
        and (not i.nullable or not _runs(model, kind, task, inputs, replaced(base, inputs, i.name, None)))
    ]
    warnings.append(
        f"missing values in {_list(refused)} are refused by the model or the given signature: rows left out"
    )
    for i, holes in zip(inputs, missing, strict=True):
        if i.name in refused:
            everything &= ~holes
    return tuple(
        msgspec.structs.replace(i, nullable=i.nullable and i.name not in refused) for i in inputs
    ), everything


def _with_gaps(rows: Rows, missing: list[Array]) -> Rows:
    """Rows that show each column's missing value at least once."""
    first = {int(np.flatnonzero(holes)[0]) for holes in missing if holes.any()}
    return rows.take(np.array(sorted({*first, *range(min(PROBED, len(rows)))})))


def _missing(rows: Rows, index: int) -> Any:
    column = rows.matrix[:, index] if rows.matrix is not None else rows.columns[index]  # type: ignore[index]
    return np.array([v is None or v != v for v in column.tolist()], dtype=bool)


def replaced(row: Rows, inputs: tuple[Input, ...], name: str, value: Scalar | None) -> Rows:
    """`row` (of length 1) with another value for one feature; None is missing."""
    index = [i.name for i in inputs].index(name)
    if row.matrix is not None:
        matrix = row.matrix.copy()
        matrix[:, index] = np.nan if value is None else value
        return Rows(matrix=matrix)
    assert row.columns is not None
    columns = list(row.columns)
    if inputs[index].dtype == "string":
        columns[index] = np.array([value], dtype=object)
    else:
        columns[index] = np.array([np.nan if value is None else value])
    return Rows(columns=tuple(columns))


def _measure_closed(
    model: Any, kind: row_layout.Kind, task: Task, inputs: tuple[Input, ...], base: Rows
) -> tuple[Input, ...]:
    """`closed` where the model itself refuses a value outside the categories."""
    measured = []
    for i in inputs:
        closed = False
        if i.categories:
            other: Scalar = UNKNOWN if i.dtype == "string" else max(map(float, i.categories)) + 1
            closed = not _runs(model, kind, task, inputs, replaced(base, inputs, i.name, other))
        measured.append(msgspec.structs.replace(i, closed=closed))
    return tuple(measured)


def _answer(model: Any, kind: row_layout.Kind, task: Task, inputs: tuple[Input, ...], rows: Rows) -> Outputs:
    try:
        return answers.answer(model, task, arrange(kind, rows, inputs))
    except Refused:
        raise
    except Exception as error:
        raise Refused(
            f"{row_layout.name(model)} cannot answer the example's own rows: {type(error).__name__}: {error}"
        ) from error


def _runs(model: Any, kind: row_layout.Kind, task: Task, inputs: tuple[Input, ...], rows: Rows) -> bool:
    try:
        answers.answer(model, task, arrange(kind, rows, inputs))
    except Exception:  # whatever it raises, it refuses these rows
        return False
    return True


def _probe(model: Any, kind: row_layout.Kind, task: Task, inputs: tuple[Input, ...]) -> Rows:
    """Without an example: the first made-up rows that the model answers."""
    for fill in (0.5, 1.0, 0.0, 2.0, -1.0):
        columns = [_filled(i, fill) for i in inputs]
        rows = pack(inputs, columns)
        if _runs(model, kind, task, inputs, rows):
            return rows
    raise Refused(
        f"{row_layout.name(model)} answers none of the rows made up for it; publish it with an example"
    )


def _filled(given: Input, fill: float) -> Any:
    if given.categories:
        return np.array(given.categories[:1] * 2, dtype=object if given.dtype == "string" else np.float64)
    if given.dtype == "string":
        return np.array(["text"] * 2, dtype=object)
    return np.full(2, round(fill) if given.dtype in ("int64", "bool") else fill)
