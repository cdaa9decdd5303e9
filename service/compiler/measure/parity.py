"""Are two callables the same function? Figures, not a bool.

The reference answers each block of rows once; every candidate is then measured against the same answers.
Nothing in here knows which of the two is scikit-learn and which is a serving runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from registry.errors import Invalid, Refused
from registry.rows import Array, Outputs, Rows
from registry.signature import Output, Signature

TOLERANCE = 1e-6
"""Of a probability: absolute. Of another number: relative to it, or to the output's usual size if larger."""
REFUSED_TRIES = 64
"""When the reference refuses a block, so many of its rows are tried one by one."""

Answer = Callable[[Rows], Outputs]


@dataclass(frozen=True)
class Block:
    """Rows of one kind, and what the reference answers to them."""

    kind: str
    rows: Rows
    answers: Outputs


class Figures(msgspec.Struct, kw_only=True):
    """How far a candidate is from the reference; differences are of anything but labels."""

    rows: dict[str, int]
    label_mismatches: int = 0
    largest_difference: float = 0.0  # as the tolerance is stated: absolute, or relative
    beyond: int = 0  # numbers outside the tolerance
    broken: int = 0  # numbers that are NaN or infinite on one side, another number on the other
    worst: str | None = None  # the kind of rows with the most faults
    error: str | None = None  # the candidate raised

    @property
    def within(self) -> bool:
        return self.error is None and not self.label_mismatches and not self.beyond


def reference(answer: Answer, kinds: dict[str, Rows]) -> list[Block]:
    """Blocks of the rows that `answer` itself takes; rows it refuses are no question of parity."""
    blocks = []
    for kind, rows in kinds.items():
        taken, answers = _taken(answer, rows)
        if answers is not None:
            blocks.append(Block(kind, taken, answers))
    return blocks


def _taken(answer: Answer, rows: Rows) -> tuple[Rows, Outputs | None]:
    if not len(rows):
        return rows, None
    if (whole := _answers(answer, rows)) is not None:
        return rows, whole
    chosen = np.unique(np.linspace(0, len(rows) - 1, REFUSED_TRIES).astype(int))
    good = [i for i in chosen.tolist() if _answers(answer, rows.take([i])) is not None]
    if not good:
        return rows, None
    rows = rows.take(good)
    return rows, _answers(answer, rows)


def _answers(answer: Answer, rows: Rows) -> Outputs | None:
    try:
        return answer(rows)
    except Exception:  # an estimator may raise anything for rows outside its domain
        return None


def bounds(tolerance: float = TOLERANCE) -> dict[str, Any]:
    """As a report states them."""
    return {
        "label_mismatches": 0,
        "probabilities": {"absolute": tolerance},
        "numbers": {"relative": tolerance},
    }


def compare(
    blocks: list[Block],
    answer: Answer,
    signature: Signature,
    tolerance: float = TOLERANCE,
    scales: dict[str, Any] | None = None,
) -> Figures:
    """`answer` against the reference. An exception of `answer` is a figure too.

    `scales` are the `usual_sizes` in more blocks than these, when only some are compared.
    """
    figures = Figures(rows={b.kind: len(b.rows) for b in blocks})
    scales = scales if scales is not None else usual_sizes(blocks, signature)
    most = 0
    for block in blocks:
        try:
            got = answer(block.rows)
        except Exception as error:
            figures.error = f"{block.kind} rows: {error}"
            figures.worst = block.kind
            return figures
        faults = 0
        for o in signature.outputs:
            faults += _measure(figures, o, block.answers[o.name], got[o.name], scales[o.name], tolerance)
        if faults > most:
            figures.worst, most = block.kind, faults
    return figures


def _measure(
    figures: Figures, output: Output, expected: Array, got: Array, scale: Any, tolerance: float
) -> int:
    """Adds one output of one block to the figures; returns how many of its numbers are at fault."""
    if expected.shape != got.shape:
        figures.error = f"{output.name} has the shape {got.shape} instead of {expected.shape}"
        return expected.size
    if is_label(output):
        same = (expected == got) | ((expected != expected) & (got != got))
        mismatches = int(np.count_nonzero(~same))
        figures.label_mismatches += mismatches
        return mismatches
    expected, got = expected.astype(np.float64), got.astype(np.float64)
    same = (expected == got) | (np.isnan(expected) & np.isnan(got))
    with np.errstate(all="ignore"):
        size = np.maximum(np.abs(expected), scale)
        difference = np.where(same, 0.0, np.abs(expected - got) / np.where(size > 0, size, 1.0))
        bad = ~(difference <= tolerance)
    finite = difference[np.isfinite(difference)]
    if finite.size:
        figures.largest_difference = max(figures.largest_difference, float(finite.max()))
    figures.broken += int(np.count_nonzero(~np.isfinite(difference)))
    beyond = int(np.count_nonzero(bad))
    figures.beyond += beyond
    return beyond


def is_label(output: Output) -> bool:
    """Equal or not; everything else differs by some amount."""
    return output.dtype not in ("float64", "float32") or output.name.rpartition(".")[2] == "label"


def usual_sizes(blocks: list[Block], signature: Signature) -> dict[str, Any]:
    """By output: what the differences of its numbers are relative to, where they are smaller themselves."""
    return {o.name: _scale(o, blocks) for o in signature.outputs}


def _scale(output: Output, blocks: list[Block]) -> Any:
    """The usual size of an output, per column: 1 for probabilities, else its mean magnitude on plain rows."""
    if output.dtype not in ("float64", "float32"):
        return 0.0
    if output.name.rpartition(".")[2] == "probabilities":
        return 1.0
    plain = [b.answers[output.name] for b in blocks if b.kind in ("example", "random")]
    if not plain:
        return 0.0
    values = np.abs(np.concatenate(plain).astype(np.float64))
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    return np.where(finite, values, 0.0).sum(axis=0) / np.maximum(count, 1)


def trial(runtime: Any, rows: Rows) -> Outputs:
    """What a graph that nobody can be asked about answers. Raises `Refused` when it does not, row by row."""
    try:
        answered: Outputs = runtime.run(rows)
    except Invalid as error:
        raise Refused(f"the graph fails on {len(rows)} rows: {error}") from error
    if any(len(np.atleast_1d(a)) != len(rows) for a in answered.values()):
        raise Refused("the graph does not answer row by row")
    return answered
