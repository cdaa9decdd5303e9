"""Outputs as answers: JSON predictions, or one flat table for CSV and Arrow.

The shapes are the table "Predicting" of the HTTP surface. NaN and infinity become null.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from registry.rows import Array, Outputs
from registry.schema import class_key
from registry.signature import Output, Signature

_to_json = msgspec.json.Encoder().encode  # writes NaN and infinity as null
_WIDE = {"probabilities": "probability", "values": "value", "vector": "vector"}


class Leaf:
    """One `Output`: where it stands in a prediction, and its columns in a table."""

    def __init__(self, spec: Output) -> None:
        self.output = spec.name
        # "y0.probabilities" is "probabilities" of the target "y0"; a target's name may hold dots itself
        self.target, _, self.key = spec.name.rpartition(".")
        self.classes: tuple[str, ...] | None = None
        if self.key in _WIDE and self.key != "vector":
            self.classes = self._classes(spec)
        prefix = f"{self.target}." if self.target else ""
        self.name = prefix + _WIDE.get(self.key, self.key)

    def _classes(self, spec: Output) -> tuple[str, ...]:
        if spec.classes:
            return tuple(map(class_key, spec.classes))
        prefix = "y" if self.key == "values" else ""
        return tuple(f"{prefix}{j}" for j in range(spec.shape[-1]))

    def values(self, outputs: Outputs) -> list[Any]:
        """One JSON value per row."""
        rows: list[Any] = outputs[self.output].tolist()
        if self.classes is None:
            return rows
        classes = self.classes
        return [dict(zip(classes, row, strict=True)) for row in rows]

    def columns(self, outputs: Outputs) -> Iterator[tuple[str, Array]]:
        array = outputs[self.output]
        if self.key not in _WIDE:
            yield self.name, array
            return
        for j, name in enumerate(self.classes or range(array.shape[1])):
            yield f"{self.name}.{name}", array[:, j]


class Answers:
    """An encoder for one signature."""

    def __init__(self, signature: Signature) -> None:
        self.leaves = [Leaf(o) for o in signature.outputs]
        groups: dict[str, list[Leaf]] = {}
        for leaf in self.leaves:
            groups.setdefault(leaf.target, []).append(leaf)
        makers = {target: _maker(leaves) for target, leaves in groups.items()}
        self.predictions = makers[""] if set(makers) == {""} else _nested(makers)

    def json(self, outputs: Outputs, name: str, version: int, prediction_id: str) -> bytes:
        return _to_json(
            {
                "predictions": self.predictions(outputs),
                "model": {"name": name, "version": version},
                "id": prediction_id,
            }
        )

    def table(self, outputs: Outputs) -> dict[str, Array]:
        """The flat columns by name, each of length n, in the signature's order."""
        return {name: array for leaf in self.leaves for name, array in leaf.columns(outputs)}

    def csv(self, outputs: Outputs) -> bytes:
        """A header and one line per row; null is the empty cell, booleans are `true` and `false`."""
        table = self.table(outputs)
        text = io.StringIO()
        # CRLF as RFC 4180 says; with "\n" alone Python's writer leaves a "\r" in a cell unquoted
        writer = csv.writer(text, lineterminator="\r\n")
        writer.writerow(table)
        writer.writerows(zip(*(_cells(a) for a in table.values()), strict=True))
        return text.getvalue().encode()


Maker = Callable[[Outputs], list[dict[str, Any]]]


def _maker(leaves: Sequence[Leaf]) -> Maker:
    if len(leaves) == 1:
        (only,) = leaves
        return lambda outputs: [{only.key: value} for value in only.values(outputs)]
    if len(leaves) == 2:
        # nearly every classifier: a literal is twice as fast as dict(zip())
        first, second = leaves
        a, b = first.key, second.key
        return lambda outputs: [
            {a: x, b: y} for x, y in zip(first.values(outputs), second.values(outputs), strict=True)
        ]
    keys = [leaf.key for leaf in leaves]
    return lambda outputs: [
        dict(zip(keys, row, strict=True)) for row in zip(*(x.values(outputs) for x in leaves), strict=True)
    ]


def _nested(makers: dict[str, Maker]) -> Maker:
    return lambda outputs: [
        dict(zip(makers, row, strict=True))
        for row in zip(*(make(outputs) for make in makers.values()), strict=True)
    ]


def _cells(array: Array) -> list[Any]:
    values: list[Any] = array.tolist()
    if array.dtype.kind == "f":
        return [v if math.isfinite(v) else None for v in values]
    if array.dtype.kind == "b":
        return ["true" if v else "false" for v in values]
    return values
