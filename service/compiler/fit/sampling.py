"""Choose rows: exact shares of each class, reproducible, one block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from registry.rows import Array

SHARE_UNITS = 1_000_000
"""Shares are counted in millionths, so that they add up without rounding errors."""


class Quota:
    """Takes `take` of every `of` rows, after `before` rows in earlier partitions."""

    def __init__(self, take: int, of: int, before: int = 0, phase: int = 0) -> None:
        """`phase` (0 <= phase < of) shifts the rounding; with 0, exactly `take` of `of` rows are taken."""
        self._take, self._of, self._position, self._phase = take, of, before, phase

    def take(self, rows: int) -> int:
        """Return how many of the next `rows` rows to take."""
        before = self._taken_until(self._position)
        self._position += rows
        return self._taken_until(self._position) - before

    def _taken_until(self, position: int) -> int:
        return (position * self._take + self._phase) // self._of


def seeded_generator(*key: int) -> np.random.Generator:
    """The random generator for `key`: the same numbers in every process and at every attempt."""
    return np.random.default_rng(np.random.SeedSequence(key))


def sample_mask(codes: Array, quotas: dict[int, Quota], generator: np.random.Generator) -> Array:
    """Mask of the rows to take, bool [rows].

    `codes` holds the class of each row, int64 [rows]. Within a class, all rows are equally likely.
    """
    mask = np.zeros(len(codes), dtype=np.bool_)
    for code, rows in _rows_by_class(codes):
        count = quotas[code].take(len(rows))
        mask[generator.permutation(rows)[:count]] = True
    return mask


class RoundRobin:
    """Assigns the rows of each class to slots in turn, so that each slot gets an equal share of the class.

    The first slot of each class is random.
    """

    def __init__(self, slots: int, generator: np.random.Generator) -> None:
        self._slots = slots
        self._generator = generator
        self._next: dict[int, int] = {}

    def assign(self, codes: Array) -> Array:
        """The slot of each row, int64 [rows], from 0."""
        slots = np.empty(len(codes), dtype=np.int64)
        for code, rows in _rows_by_class(codes):
            first = self._next.get(code)
            if first is None:
                first = int(self._generator.integers(self._slots))
            slots[self._generator.permutation(rows)] = (first + np.arange(len(rows))) % self._slots
            self._next[code] = (first + len(rows)) % self._slots
        return slots


def _rows_by_class(codes: Array) -> Iterable[tuple[int, Array]]:
    """(code, row indices) of each class in `codes`, in ascending order."""
    order = np.argsort(codes, kind="stable")
    classes, starts = np.unique(codes[order], return_index=True)
    return zip(classes.tolist(), np.split(order, starts[1:]), strict=True) if len(classes) else ()
