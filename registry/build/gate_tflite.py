"""What an export must hold to be served: figures against its source, bounds, and the reasons to refuse it.

The rows are the example's (those that int8 was not calibrated with), made-up ones like them, and edge values:
thresholds one ulp to either side, gaps, magnitudes far outside the example. All are measured. Which kinds are
held against the bounds depends on what an export can promise, see `judged`.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from registry.build import parity
from registry.build.job import Bounds, Quantize
from registry.rows import Array, Rows
from registry.signature import Signature

PLAIN = frozenset({"example", "random"})
FAR = "wide"


class Limits(msgspec.Struct, frozen=True):
    """The bounds of one export, as its report states them. None: not asked."""

    labels: float | None  # share of the labels that may be another
    numbers: float | None  # largest difference: of probabilities absolute, of other numbers relative
    accuracy_drop: float | None  # accuracy (or R2) of the source minus the export's
    bytes: int | None


# labels, numbers, accuracy drop
DEFAULTS: dict[Quantize, tuple[float, float, float]] = {
    "none": (0.001, 0.001, 0.002),
    "float16": (0.01, 0.01, 0.005),
    "dynamic": (0.02, 0.1, 0.01),
    "int8": (0.05, 0.2, 0.02),
}
"""Where a request gives no bounds. A tree's labels may not differ at all."""


class Kind(msgspec.Struct):
    """The figures of one kind of rows."""

    rows: int
    label_mismatches: int
    largest_difference: float
    judged: bool


class Fidelity(msgspec.Struct):
    """An export against its source. The first four are of the judged rows."""

    label_agreement: float | None
    label_mismatches: int
    largest_difference: float
    broken: int  # numbers that only one side has as NaN or infinity
    kinds: dict[str, Kind]
    error: str | None = None  # LiteRT refused the rows


def single(rows: Rows, signature: Signature) -> Rows:
    """`rows` as a device sends them, in float32; categories stay what they are, or none would be known."""
    if rows.matrix is None:
        return rows
    kept = np.array([i.categories is not None for i in signature.inputs])
    with np.errstate(over="ignore", invalid="ignore"):
        return Rows(np.where(kept, rows.matrix, rows.matrix.astype(np.float32).astype(np.float64)))


def blurred(rows: Rows, signature: Signature) -> list[str]:
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


def judged(kinds: list[str], quantize: Quantize, exact: bool) -> frozenset[str]:
    """Trees in float32 answer alike everywhere. Sums in float32 do where its digits suffice, and quantized
    numbers only where the model was shown rows: outside of that they saturate."""
    if exact:
        return frozenset(kinds)
    return frozenset(kinds) - {FAR} if quantize == "none" else frozenset(kinds) & PLAIN


def limits(asked: Bounds, quantize: Quantize, exact: bool, signature: Signature) -> Limits:
    """What is asked, and for the rest the defaults. A disagreement that is asked for is that of labels, and
    of numbers where there are no labels; probabilities may then be what they are."""
    labels, numbers, drop = DEFAULTS[quantize]
    given = asked.max_disagreement
    labelled = any(parity.is_label(o) for o in signature.outputs)
    if given is not None:
        held = (given, None) if labelled else (None, given)
    else:
        held = (0.0 if exact else labels) if labelled else None, numbers
    return Limits(
        labels=held[0],
        numbers=held[1],
        accuracy_drop=asked.max_accuracy_drop if asked.max_accuracy_drop is not None else drop,
        bytes=asked.max_bytes,
    )


def measure(
    blocks: list[parity.Block], answer: parity.Answer, signature: Signature, held: frozenset[str]
) -> Fidelity:
    """`answer` against the reference, by kind of rows; `held` are the kinds that are judged."""
    scales = parity.usual_sizes(blocks, signature)
    labels = sum(parity.is_label(o) for o in signature.outputs)
    total = Fidelity(None, 0, 0.0, 0, {})
    count = 0
    for block in blocks:
        found = parity.compare([block], answer, signature, scales=scales)
        counts = block.kind in held
        total.kinds[block.kind] = Kind(
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


def faults(found: Fidelity, bounds: Limits) -> list[str]:
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


def accuracy_faults(measured: dict[str, Any] | None, bounds: Limits, asked: Bounds) -> list[str]:
    """`measured`: the report's `accuracy`, None when there are no true values."""
    if measured is None:
        if asked.max_accuracy_drop is None:
            return []
        return ["max_accuracy_drop cannot be held: the version has no example with a target column"]
    most = bounds.accuracy_drop
    if asked.max_accuracy_drop is None and most is not None:
        most = max(most, 1.0 / measured["rows"])  # by default a single row is no proof
    if most is None or measured["drop"] <= most:
        return []
    return [
        f"{measured['measure']} falls from {measured['before']:.4g} to {measured['after']:.4g}, "
        f"the bound is a drop of {most:.4g}"
    ]
