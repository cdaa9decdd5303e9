"""Finds the rows of a batch that a model refuses, so that the others are answered.

A model refuses a batch as a whole, although often a single row is the cause: an index outside an embedding's
table, an infinity that an inner step computed, a category that the encoder does not know. The refused batch
is divided until the rows are found. A process that ends or does not answer in time is treated alike.

Both are bounded: after `MAX_CALLS` calls a refused block is listed without trying its rows one by one, and
after `MAX_LOST_CALLS` lost calls the error is raised, because then most likely the model is broken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from registry.errors import DeadlineExceeded, FieldError, Invalid, Unavailable
from registry.rows import Array, Outputs, Rows
from service.runtime.codec.columns import Faults
from service.runtime.isolated_runtime import CallFailed, RestartPending

BLOCKS = 8
"""A refused block is divided into this many: a refusal may cost a new process or interpreter, an answer does
not, and of 8 blocks one refuses where halving would meet three refusals one after another."""
MAX_CALLS = 200_000
"""Calls to find refused rows: enough for 5 % of the rows of a large partition. They take minutes."""
MAX_LOST_CALLS = 24
"""Calls that ended without an answer, such as crashes and timeouts. Eight find one of 65,536 rows."""
MAX_RESTART_WAIT_S = 60.0
"""Longest wait for a process whose restart is delayed."""
FEW_NUMBERS = 32
"""Up to this many numbers, Python's own check is faster than numpy's."""

BeforeCall = Callable[[], None]
"""Called before each further call for the same rows; an exception ends the search."""


class ScoredRows(NamedTuple):
    """Answers to the accepted rows, in their order, and why each of the others was refused."""

    outputs: Outputs | None  # None without accepted rows
    accepted: Array  # bool, one for each row
    refused: dict[int, FieldError]  # by index of the row


class _Block(NamedTuple):
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def divide(self) -> list[_Block]:
        """Return consecutive blocks, the last one first."""
        step = -(-len(self) // BLOCKS)
        starts = range(self.start, self.stop, step)
        return [_Block(start, min(start + step, self.stop)) for start in reversed(starts)]


class RowScorer:
    """Scores batches of one partition. The bounds hold for all of its batches together.

    `finite`: refuse a row with an answer that is infinite or NaN. Where a converted scikit-learn model
    computes such an answer, the estimator itself raises an error.
    """

    def __init__(self, run: Callable[[Rows], Outputs], finite: bool = False) -> None:
        self._model, self._finite = run, finite
        self._calls = self._lost_calls = 0

    def run(self, rows: Rows, before_call: BeforeCall, max_refused: float = math.inf) -> ScoredRows:
        """Answer `rows`. Raises `Unavailable` if the cause is not in the rows.

        After `max_refused` refused rows, the rows of refused blocks are not tried one by one.
        """
        refused: dict[int, FieldError] = {}
        answers: list[Outputs] = []
        blocks = [_Block(0, len(rows))]
        while blocks:
            block = blocks.pop()
            if len(block) < len(rows):
                before_call()
            try:
                outputs = self._call(rows, block)
            except (Invalid, CallFailed, DeadlineExceeded) as error:
                if len(block) == 1:
                    refused[block.start] = FieldError(_row_message(error))
                elif isinstance(error, Invalid) and (self._calls >= MAX_CALLS or len(refused) > max_refused):
                    message = f"the model refuses a block of {len(block)} rows with this one ({error})"
                    reason = f"not tried alone, after {len(refused)} other refused rows"
                    refused |= dict.fromkeys(range(*block), FieldError(f"{message}; {reason}"))
                else:
                    blocks += block.divide()
            else:
                answers.append(self._refuse_infinite(outputs, block, refused))
        accepted = np.ones(len(rows), dtype=bool)
        accepted[list(refused)] = False
        return ScoredRows(_concatenate(answers), accepted, refused)

    def _call(self, rows: Rows, block: _Block) -> Outputs:
        """Raises `CallFailed` or `DeadlineExceeded` of a single row only if it happens twice."""
        piece = rows if len(block) == len(rows) else rows.take(slice(*block))
        self._calls += len(block) < len(rows)
        try:
            return self._call_started(piece)
        except (CallFailed, DeadlineExceeded) as error:
            self._count_lost_call(error)
            if len(block) > 1:
                raise
        try:
            return self._call_started(piece)
        except (CallFailed, DeadlineExceeded) as error:
            self._count_lost_call(error)
            raise

    def _call_started(self, rows: Rows) -> Outputs:
        """Call the model; if its process is about to be restarted, wait for that."""
        deadline = time.monotonic() + MAX_RESTART_WAIT_S
        while True:
            try:
                return self._model(rows)
            except RestartPending as error:
                if time.monotonic() + error.delay_s > deadline:
                    raise
                time.sleep(error.delay_s)

    def _count_lost_call(self, error: Unavailable) -> None:
        """Raises `Unavailable` beyond `MAX_LOST_CALLS`."""
        self._lost_calls += 1
        if self._lost_calls > MAX_LOST_CALLS:
            raise Unavailable(f"{self._lost_calls} calls failed in one partition, the last one: {error}")

    def _refuse_infinite(self, outputs: Outputs, block: _Block, refused: dict[int, FieldError]) -> Outputs:
        """Add the rows with an infinite answer to `refused`; return the answers to the others."""
        if not self._finite or not len(block):
            return outputs
        names = [name for name, array in outputs.items() if array.dtype.kind == "f"]
        finite = {name: np.isfinite(outputs[name]).reshape(len(block), -1).all(axis=1) for name in names}
        if all(mask.all() for mask in finite.values()):
            return outputs
        for name, mask in finite.items():
            for index in np.flatnonzero(~mask).tolist():
                message = (
                    f"the model refuses this row: its {name} is not finite; the row holds values that are "
                    "too large for the model, or missing ones"
                )
                refused.setdefault(block.start + index, FieldError(message))
        accepted = np.logical_and.reduce(list(finite.values()))
        return {name: array[accepted] for name, array in outputs.items()}


def are_finite(outputs: Outputs) -> bool:
    """Whether no answer is infinite or NaN."""
    for array in outputs.values():
        if array.dtype.kind != "f":
            continue
        if array.size <= FEW_NUMBERS:
            if not all(map(math.isfinite, array.ravel().tolist())):
                return False
        elif not np.isfinite(array).all():
            return False
    return True


def refusal(refused: dict[int, FieldError]) -> Invalid:
    """Return the error of a call with at least one refused row, by their index."""
    faults = Faults()
    for instance, fault in sorted(refused.items()):
        faults.add(fault.message, instance, fault.field, fault.expected)
    return faults.to_error()


def _row_message(error: Exception) -> str:
    if isinstance(error, Invalid):
        return str(error).replace("the model refuses these rows", "the model refuses this row", 1)
    return f"the model fails for this row: {error}"


def _concatenate(answers: list[Outputs]) -> Outputs | None:
    if len(answers) <= 1:
        return answers[0] if answers else None
    return {name: np.concatenate([outputs[name] for outputs in answers]) for name in answers[0]}
