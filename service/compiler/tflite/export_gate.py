"""The gate of exports: compare an export with its source, and list the reasons to reject it.

The compared rows are the example's (without those that calibrated the export), random rows like them, and
edge rows: thresholds and the adjacent numbers, missing values, magnitudes far outside the example. All are
measured. Which kinds of rows are judged by the bounds depends on the loss of the export, see `judged_kinds`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec
import numpy as np

from registry.build_messages import ExportBounds
from registry.rows import Array, Rows
from registry.signature import Signature
from registry.vocabulary import Quantize
from service.compiler.measure import parity
from service.compiler.tflite.quantize_modes import MODES, DefaultBounds

WIDE = "wide"
"""The kind of rows with magnitudes far outside the example."""


class ExportLimits(msgspec.Struct, frozen=True):
    """The bounds of one export, as its report states them. None: unlimited."""

    labels: float | None  # share of the labels that may differ
    numbers: float | None  # largest difference: absolute for probabilities, relative for other numbers
    accuracy_drop: float  # accuracy (or R2) of the source minus that of the export
    bytes: int | None


Loss = Literal["exact", "float32", "aggregated"] | Quantize
"""How an export may differ from its source.

- `exact`: a tree ensemble, whose comparisons have no rounding errors in float32.
- `float32`: any other model in float32.
- `aggregated`: trees were dropped or leaves merged.
- a quantize mode: the model was quantized.
"""

_BOUNDS: dict[Loss, DefaultBounds] = {
    "exact": DefaultBounds(0.0, 0.001, 0.001, 0.002),
    "float32": DefaultBounds(0.001, 0.001, 0.001, 0.002),
    "aggregated": DefaultBounds(0.05, None, 0.5, 0.02),
    **{mode: entry.bounds for mode, entry in MODES.items()},
}


class RowKindFigures(msgspec.Struct):
    """The figures of one kind of rows."""

    rows: int
    label_mismatches: int
    largest_difference: float
    judged: bool


class Fidelity(msgspec.Struct):
    """Figures of an export against its source. The first four count the judged rows only."""

    label_agreement: float | None
    label_mismatches: int
    largest_difference: float
    broken: int  # numbers that are NaN or infinite on one side only
    kinds: dict[str, RowKindFigures]
    error: str | None = None  # LiteRT refused the rows


def to_device_rows(rows: Rows, signature: Signature) -> Rows:
    """Round the rows to float32, as a device sends them, except categories, which would become unknown."""
    if rows.matrix is None:
        return rows
    categorical = np.array([i.categories is not None for i in signature.inputs])
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = rows.matrix.astype(np.float32).astype(np.float64)
    return Rows(np.where(categorical, rows.matrix, rounded))


def indistinct_features(rows: Rows, signature: Signature) -> list[str]:
    """Names of the features with different values that are the same number in float32."""
    if rows.matrix is None:
        return []
    names = []
    for index, feature in enumerate(signature.inputs):
        values: Array = np.unique(rows.matrix[:, index])
        values = values[np.isfinite(values) & (np.abs(values) >= 2**24)]
        if len(np.unique(values.astype(np.float32))) < len(values):
            names.append(feature.name)
    return names


def classify_loss(mode: Quantize, exact: bool, reduction: str) -> Loss:
    """`exact`: the model is a tree ensemble. `reduction`: describes what was removed from it, or ""."""
    if reduction:
        return "aggregated"
    if exact:
        return "exact"
    return "float32" if mode == "none" else mode


def judged_kinds(kinds: Iterable[str], loss: Loss) -> frozenset[str]:
    """The kinds of rows that the bounds apply to.

    Trees in float32 give the same answers for all rows. Sums in float32 do so where float32 has enough
    digits. An approximation of the model must only hold for rows like those of the training data.
    """
    compared = frozenset(kinds)
    if loss == "exact":
        return compared
    if loss == "float32":
        return compared - {WIDE}
    return compared & {"example"} or compared & {"random"}


def limits_for(requested: ExportBounds, loss: Loss, signature: Signature) -> ExportLimits:
    """The requested bounds, and defaults for the others.

    A requested disagreement applies to labels, and to numbers only for outputs without labels: probabilities
    beside labels are then unlimited.
    """
    default, disagreement = _BOUNDS[loss], requested.max_disagreement
    drop = default.accuracy_drop if requested.max_accuracy_drop is None else requested.max_accuracy_drop
    if any(parity.is_label(o) for o in signature.outputs):
        if disagreement is None:
            return ExportLimits(default.labels, default.beside_labels, drop, requested.max_bytes)
        return ExportLimits(disagreement, None, drop, requested.max_bytes)
    numbers = default.numbers if disagreement is None else disagreement
    return ExportLimits(None, numbers, drop, requested.max_bytes)


def measure(
    blocks: list[parity.ReferenceBlock],
    answer: parity.AnswerRows,
    signature: Signature,
    judged: frozenset[str],
) -> Fidelity:
    """Compare `answer` with the reference, by kind of rows."""
    scales = parity.output_scales(blocks, signature)
    labels = sum(parity.is_label(o) for o in signature.outputs)
    total = Fidelity(None, 0, 0.0, 0, {})
    count = 0
    for block in blocks:
        figures = parity.compare([block], answer, signature, scales=scales)
        is_judged = block.kind in judged
        total.kinds[block.kind] = RowKindFigures(
            len(block.rows), figures.label_mismatches, figures.largest_difference, is_judged
        )
        total.error = total.error or figures.error
        if is_judged:
            count += len(block.rows) * labels
            total.label_mismatches += figures.label_mismatches
            total.largest_difference = max(total.largest_difference, figures.largest_difference)
            total.broken += figures.broken
    if count:
        total.label_agreement = 1.0 - total.label_mismatches / count
    return total


def find_faults(fidelity: Fidelity, limits: ExportLimits) -> list[str]:
    """The reasons why the figures are outside the limits; empty if they are within."""
    if fidelity.error is not None:
        return [f"the export does not answer the rows that the model answers: {fidelity.error}"]
    faults = []
    if fidelity.broken:
        faults.append(f"{fidelity.broken} numbers are NaN or infinite in only one of export and model")
    if fidelity.label_agreement is not None and limits.labels is not None:
        share = 1.0 - fidelity.label_agreement
        if share > limits.labels:
            faults.append(
                f"{fidelity.label_mismatches} labels differ from the model's: {share:.4g} of them, "
                f"the bound is {limits.labels:g}"
            )
    if limits.numbers is not None and fidelity.largest_difference > limits.numbers:
        faults.append(
            f"a number differs from the model's by {fidelity.largest_difference:.3g}, "
            f"the bound is {limits.numbers:g}"
        )
    return faults


def find_accuracy_faults(
    accuracy: dict[str, Any] | None, limits: ExportLimits, requested: ExportBounds
) -> list[str]:
    """`accuracy` is the report's entry of that name; None without true values."""
    if accuracy is None:
        if requested.max_accuracy_drop is None:
            return []
        return ["max_accuracy_drop cannot be checked: the version has no example with a target column"]
    limit = limits.accuracy_drop
    if requested.max_accuracy_drop is None:
        limit = max(limit, 1.0 / accuracy["rows"])  # by default, a single row does not reject the export
    if accuracy["drop"] <= limit:
        return []
    return [
        f"{accuracy['measure']} falls from {accuracy['before']:.4g} to {accuracy['after']:.4g}, "
        f"the bound is a drop of {limit:.4g}"
    ]
