"""Which rows are taken: exact shares of each class, the same at every run, one block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from registry.rows import Array

PARTS = 1_000_000
"""Shares are counted in millionths, so that they add up without rounding errors."""


class Quota:
    """Takes `most` of every `of` rows, counted from `before` rows that others have seen."""

    def __init__(self, most: int, of: int, before: int = 0, phase: int = 0) -> None:
        """`phase` (0 <= phase < of) shifts where the rounding falls; 0 takes exactly `most` of `of`."""
        self._most, self._of, self._seen, self._phase = most, of, before, phase

    def take(self, rows: int) -> int:
        """How many of the next `rows` rows."""
        before = self._at(self._seen)
        self._seen += rows
        return self._at(self._seen) - before

    def _at(self, seen: int) -> int:
        return (seen * self._most + self._phase) // self._of


def random(*key: int) -> np.random.Generator:
    """The generator of that place: a partition's rows are drawn alike whoever draws them, and when."""
    return np.random.default_rng(np.random.SeedSequence(key))


def pick(codes: Array, quotas: dict[int, Quota], generator: np.random.Generator) -> Array:
    """A mask of the rows taken; `codes` is each row's class, int64 [rows]. In each class any row is as likely
    as another."""
    mask = np.zeros(len(codes), dtype=np.bool_)
    for code, rows in _by_class(codes):
        taken = quotas[code].take(len(rows))
        mask[generator.permutation(rows)[:taken]] = True
    return mask


class Dealer:
    """Deals the rows of each class over `hands` in turn, beginning anywhere: each gets its shares."""

    def __init__(self, hands: int, generator: np.random.Generator) -> None:
        self._hands = hands
        self._generator = generator
        self._next: dict[int, int] = {}

    def deal(self, codes: Array) -> Array:
        """Each row's hand, int64 [rows]."""
        hands = np.empty(len(codes), dtype=np.int64)
        for code, rows in _by_class(codes):
            first = self._next.get(code)
            if first is None:
                first = int(self._generator.integers(self._hands))
            hands[self._generator.permutation(rows)] = (first + np.arange(len(rows))) % self._hands
            self._next[code] = (first + len(rows)) % self._hands
        return hands


def _by_class(codes: Array) -> Iterable[tuple[int, Array]]:
    """The rows of each class that occurs, classes ascending."""
    order = np.argsort(codes, kind="stable")
    found, starts = np.unique(codes[order], return_index=True)
    return zip(found.tolist(), np.split(order, starts[1:]), strict=True) if len(found) else ()
