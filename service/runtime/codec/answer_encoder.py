"""Encodes outputs as answers: JSON predictions, or one flat table for CSV and Arrow.

`docs/howto/online.md` names the columns of the table. NaN and infinity become null.
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
_TABLE_NAMES = {"probabilities": "probability", "values": "value", "vector": "vector"}


class OutputField:
    """The place of one `Output` in a prediction, and its columns in a table."""

    def __init__(self, spec: Output) -> None:
        self.output = spec.name
        # "y0.probabilities" is "probabilities" of the target "y0"; a target's name may contain dots itself.
        self.target, _, self.key = spec.name.rpartition(".")
        self.classes: tuple[str, ...] | None = None
        if self.key in _TABLE_NAMES and self.key != "vector":
            self.classes = self._classes(spec)
        prefix = f"{self.target}." if self.target else ""
        self.name = prefix + _TABLE_NAMES.get(self.key, self.key)

    def _classes(self, spec: Output) -> tuple[str, ...]:
        if spec.classes:
            return tuple(map(class_key, spec.classes))
        prefix = "y" if self.key == "values" else ""
        return tuple(f"{prefix}{j}" for j in range(spec.shape[-1]))

    def values(self, outputs: Outputs) -> list[Any]:
        """Return one JSON value per row."""
        rows: list[Any] = outputs[self.output].tolist()
        if self.classes is None:
            return rows
        classes = self.classes
        return [dict(zip(classes, row, strict=True)) for row in rows]

    def columns(self, outputs: Outputs) -> Iterator[tuple[str, Array]]:
        """Yield name and array of each column, of length n."""
        array = outputs[self.output]
        if self.key not in _TABLE_NAMES:
            yield self.name, array
            return
        for j, name in enumerate(self.classes or range(array.shape[1])):
            yield f"{self.name}.{name}", array[:, j]


class AnswerEncoder:
    """An encoder for one signature."""

    def __init__(self, signature: Signature) -> None:
        self.fields = [OutputField(o) for o in signature.outputs]
        groups: dict[str, list[OutputField]] = {}
        for field in self.fields:
            groups.setdefault(field.target, []).append(field)
        builders = {target: _flat_builder(fields) for target, fields in groups.items()}
        self._predictions = builders[""] if set(builders) == {""} else _nested_builder(builders)

    def json(self, outputs: Outputs, name: str, version: int, prediction_id: str) -> bytes:
        return _to_json(
            {
                "predictions": self._predictions(outputs),
                "model": {"name": name, "version": version},
                "id": prediction_id,
            }
        )

    def table(self, outputs: Outputs) -> dict[str, Array]:
        """Return the flat columns by name, each of length n, in the signature's order."""
        return {name: array for field in self.fields for name, array in field.columns(outputs)}

    def csv(self, outputs: Outputs) -> bytes:
        """Return a header and one line per row; null is an empty cell, booleans are `true` and `false`."""
        table = self.table(outputs)
        text = io.StringIO()
        # CRLF as in RFC 4180; with "\n" alone, Python's writer does not quote a cell that contains "\r".
        writer = csv.writer(text, lineterminator="\r\n")
        writer.writerow(table)
        writer.writerows(zip(*(_cells(a) for a in table.values()), strict=True))
        return text.getvalue().encode()


PredictionsBuilder = Callable[[Outputs], list[dict[str, Any]]]


def _flat_builder(fields: Sequence[OutputField]) -> PredictionsBuilder:
    if len(fields) == 1:
        (field,) = fields
        return lambda outputs: [{field.key: value} for value in field.values(outputs)]
    if len(fields) == 2 and fields[0].classes is None and fields[1].classes is not None:
        return _classifier_builder(fields[0], fields[1], fields[1].classes)
    if len(fields) == 2:
        # a literal is twice as fast as dict(zip())
        first, second = fields
        a, b = first.key, second.key
        return lambda outputs: [
            {a: x, b: y} for x, y in zip(first.values(outputs), second.values(outputs), strict=True)
        ]
    keys = [field.key for field in fields]
    return lambda outputs: [
        dict(zip(keys, row, strict=True)) for row in zip(*(x.values(outputs) for x in fields), strict=True)
    ]


def _classifier_builder(
    label: OutputField, probabilities: OutputField, classes: tuple[str, ...]
) -> PredictionsBuilder:
    """The builder of nearly every classifier, without a call for each field: it takes a third of the time."""
    a, b, first, second = label.key, probabilities.key, label.output, probabilities.output
    return lambda outputs: [
        {a: x, b: dict(zip(classes, row, strict=True))}
        for x, row in zip(outputs[first].tolist(), outputs[second].tolist(), strict=True)
    ]


def _nested_builder(builders: dict[str, PredictionsBuilder]) -> PredictionsBuilder:
    return lambda outputs: [
        dict(zip(builders, row, strict=True))
        for row in zip(*(build(outputs) for build in builders.values()), strict=True)
    ]


def _cells(array: Array) -> list[Any]:
    values: list[Any] = array.tolist()
    if array.dtype.kind == "f":
        return [v if math.isfinite(v) else None for v in values]
    if array.dtype.kind == "b":
        return ["true" if v else "false" for v in values]
    return values
