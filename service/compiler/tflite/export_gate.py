"""What an export must hold to be served: figures against its source, bounds, and the reasons to refuse it.

The rows are the example's (those that int8 was not calibrated with), made-up ones like them, and edge values:
thresholds one ulp to either side, gaps, magnitudes far outside the example. All are measured. Which kinds are
held against the bounds depends on what an export can promise, see `judged_kinds`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from registry.build_messages import ExportBounds
from registry.rows import Array, Rows
from registry.signature import Signature
from registry.vocabulary import Quantize
from service.compiler.measure import parity

FAR = "wide"


class ExportLimits(msgspec.Struct, frozen=True):
    """The bounds of one export, as its report states them. None: not asked."""

    labels: float | None  # share of the labels that may be another
    numbers: float | None  # largest difference: of probabilities absolute, of other numbers relative
    accuracy_drop: float  # accuracy (or R2) of the source minus the export's
    bytes: int | None


Loss = Literal["nothing", "digits", "float16", "dynamic", "int8", "aggregated"]
"""What an export may have lost. `nothing`: a tree ensemble, whose comparisons are exact in float32. `digits`:
any other model in float32. `aggregated`: trees were dropped or leaves merged."""


class Usual(NamedTuple):
    """Where a request gives no bounds."""

    labels: float
    beside: float | None  # of the probabilities and scores beside labels
    numbers: float
    accuracy_drop: float


DEFAULTS: dict[Loss, Usual] = {
    "nothing": Usual(0.0, 0.001, 0.001, 0.002),
    "digits": Usual(0.001, 0.001, 0.001, 0.002),
    "float16": Usual(0.01, 0.01, 0.01, 0.005),
    "dynamic": Usual(0.02, 0.1, 0.1, 0.01),
    "int8": Usual(0.05, None, 0.3, 0.02),
    "aggregated": Usual(0.05, None, 0.5, 0.02),
}


class RowKindFigures(msgspec.Struct):
    """The figures of one kind of rows."""

    rows: int
    label_mismatches: int
    largest_difference: float
    judged_kinds: bool


class Fidelity(msgspec.Struct):
    """An export against its source. The first four are of the judged rows."""

    label_agreement: float | None
    label_mismatches: int
    largest_difference: float
    broken: int  # numbers that only one side has as NaN or infinity
    kinds: dict[str, RowKindFigures]
    error: str | None = None  # LiteRT refused the rows


def to_device_rows(rows: Rows, signature: Signature) -> Rows:
    """`rows` as a device sends them, in float32; categories stay what they are, or none would be known."""
    if rows.matrix is None:
        return rows
    kept = np.array([i.categories is not None for i in signature.inputs])
    with np.errstate(over="ignore", invalid="ignore"):
        return Rows(np.where(kept, rows.matrix, rows.matrix.astype(np.float32).astype(np.float64)))


def indistinct_features(rows: Rows, signature: Signature) -> list[str]:
    """The features whose values float32 cannot tell apart."""
    if rows.matrix is None:
        return []
    names = []
    for index, given in enumerate(signature.inputs):
        values: Array = np.unique(rows.matrix[:, index])
        values = values[np.isfinite(values) & (np.abs(values) > 2**24)]
        if len(np.unique(values.astype(np.float32))) < len(values):
            names.append(given.name)
    return names


def classify_loss(quantize: Quantize, exact: bool, reduction: str) -> Loss:
    """`exact`: the model is trees and nothing else."""
    if reduction:
        return "aggregated"
    if exact:
        return "nothing"
    return "digits" if quantize == "none" else quantize


def judged_kinds(kinds: Iterable[str], lost: Loss) -> frozenset[str]:
    """Trees in float32 answer alike everywhere. Sums in float32 do where its digits suffice, and what is only
    nearly the model does so for rows like those that the model is for."""
    there = frozenset(kinds)
    if lost == "nothing":
        return there
    if lost == "digits":
        return there - {FAR}
    return there & {"example"} or there & {"random"}


def limits_for(asked: ExportBounds, lost: Loss, signature: Signature) -> ExportLimits:
    """What is asked, and for the rest the defaults. A disagreement that is asked for is that of labels, and
    of numbers where there are no labels; probabilities may then be what they are."""
    usual, given = DEFAULTS[lost], asked.max_disagreement
    drop = usual.accuracy_drop if asked.max_accuracy_drop is None else asked.max_accuracy_drop
    if any(parity.is_label(o) for o in signature.outputs):
        if given is None:
            return ExportLimits(usual.labels, usual.beside, drop, asked.max_bytes)
        return ExportLimits(given, None, drop, asked.max_bytes)
    return ExportLimits(None, usual.numbers if given is None else given, drop, asked.max_bytes)


def measure(
    blocks: list[parity.ReferenceBlock], answer: parity.AnswerRows, signature: Signature, held: frozenset[str]
) -> Fidelity:
    """`answer` against the reference, by kind of rows; `held` are the kinds that are judged."""
    scales = parity.output_scales(blocks, signature)
    labels = sum(parity.is_label(o) for o in signature.outputs)
    total = Fidelity(None, 0, 0.0, 0, {})
    count = 0
    for block in blocks:
        found = parity.compare([block], answer, signature, scales=scales)
        counts = block.kind in held
        total.kinds[block.kind] = RowKindFigures(
            len(block.rows), found.label_mismatches, found.largest_difference, counts
        )
        total.error = total.error or found.error
        if counts:
            count += len(block.rows) * labels
            total.label_mismatches += found.label_mismatches
            total.largest_difference = max(total.largest_difference, found.largest_difference)
            total.broken += found.broken
    if count:
        total.label_agreement = 1.0 - total.label_mismatches / count
    return total


def find_faults(found: Fidelity, bounds: ExportLimits) -> list[str]:
    """Why `found` is outside of `bounds`, in words; empty when it is not."""
    if found.error is not None:
        return [f"the export does not answer as the model does: {found.error}"]
    said = []
    if found.broken:
        said.append(f"{found.broken} numbers are NaN or infinite where the model's are not, or the other way")
    if found.label_agreement is not None and bounds.labels is not None:
        share = 1.0 - found.label_agreement
        if share > bounds.labels:
            said.append(
                f"{found.label_mismatches} labels differ from the model's: {share:.4g} of them, "
                f"the bound is {bounds.labels:g}"
            )
    if bounds.numbers is not None and found.largest_difference > bounds.numbers:
        said.append(
            f"a number differs from the model's by {found.largest_difference:.3g}, "
            f"the bound is {bounds.numbers:g}"
        )
    return said


def find_accuracy_faults(
    measured: dict[str, Any] | None, bounds: ExportLimits, asked: ExportBounds
) -> list[str]:
    """`measured`: the report's `accuracy`, None when there are no true values."""
    if measured is None:
        if asked.max_accuracy_drop is None:
            return []
        return ["max_accuracy_drop cannot be held: the version has no example with a target column"]
    most = bounds.accuracy_drop
    if asked.max_accuracy_drop is None:
        most = max(most, 1.0 / measured["rows"])  # by default a single row is no proof
    if measured["drop"] <= most:
        return []
    return [
        f"{measured['measure']} falls from {measured['before']:.4g} to {measured['after']:.4g}, "
        f"the bound is a drop of {most:.4g}"
    ]
