"""What flows from step to step of a pipeline: columns, some still as the device sends them.

A scaler in front of a tree or a linear model need not be computed: `RawColumns` columns carry their steps along
until somebody must have the numbers. A tree moves its thresholds back through them (see `thresholds.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from registry.rows import Array
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.writer import GraphTensor

Kind = Literal["subtract", "divide", "multiply", "add", "fill", "clip"]


@dataclass(frozen=True)
class Step:
    """One operation on every column: `values` [columns], for `clip` [2, columns]."""

    kind: Kind
    values: Array

    def at(self, columns: Array) -> Step:
        return Step(self.kind, self.values[..., columns])

    def apply(self, x: Array) -> Array:
        """As scikit-learn computes it: in doubles, kept in the dtype of `x` (float32 or float64)."""
        v = self.values
        with np.errstate(all="ignore"):
            if self.kind == "fill":
                return np.where(np.isnan(x), v, x).astype(x.dtype)
            if self.kind == "clip":
                return np.clip(x, v[0], v[1]).astype(x.dtype)
            operation = {"subtract": np.subtract, "divide": np.divide, "multiply": np.multiply, "add": np.add}
            return np.asarray(operation[self.kind](x, v)).astype(x.dtype)


@dataclass(frozen=True)
class RawColumns:
    """Input features `source` [columns], and what is still to be done to them."""

    source: Array
    steps: tuple[Step, ...] = ()

    @property
    def width(self) -> int:
        return len(self.source)

    def take(self, columns: Array) -> RawColumns:
        return RawColumns(self.source[columns], tuple(s.at(columns) for s in self.steps))

    def then(self, step: Step) -> RawColumns:
        return replace(self, steps=(*self.steps, step))

    def evaluate(self, x: Array) -> Array:
        """`x` [..., columns] of the input's features, through all steps."""
        for step in self.steps:
            x = step.apply(x)
        return x


ColumnPart = RawColumns | GraphTensor


@dataclass(frozen=True)
class GraphColumns:
    """Side by side: columns that are still raw and columns that have been computed ([rows, width])."""

    parts: tuple[ColumnPart, ...]

    @property
    def width(self) -> int:
        return sum(p.width for p in self.parts)

    def take(self, graph: Graph, columns: Array) -> GraphColumns:
        """Those columns in that order; neighbours of one part stay together."""
        wanted = np.asarray(columns, dtype=np.int64)
        if np.array_equal(wanted, np.arange(self.width)):
            return self
        ends = np.cumsum([p.width for p in self.parts])
        owner = np.searchsorted(ends, wanted, side="right")
        taken: list[ColumnPart] = []
        for run in np.split(np.arange(len(wanted)), np.flatnonzero(np.diff(owner)) + 1):
            if not len(run):
                continue
            part = self.parts[owner[run[0]]]
            inside = wanted[run] - (ends[owner[run[0]]] - part.width)
            taken.append(
                part.take(inside) if isinstance(part, RawColumns) else graph.take(part, inside.tolist())
            )
        return GraphColumns(tuple(taken))

    def then(self, graph: Graph, kind: Kind, values: Array) -> GraphColumns:
        """Another step on all columns: noted down for raw ones, computed for the others."""
        parts: list[ColumnPart] = []
        start = 0
        for part in self.parts:
            step = Step(kind, np.asarray(values, dtype=np.float64)[..., start : start + part.width])
            parts.append(part.then(step) if isinstance(part, RawColumns) else compute(graph, part, (step,)))
            start += part.width
        return GraphColumns(tuple(parts))


def to_tensor(graph: Graph, columns: GraphColumns) -> GraphTensor:
    """All columns computed, [rows, width] float32."""
    return graph.concat([_tensor(graph, part) for part in columns.parts])


def _tensor(graph: Graph, part: ColumnPart) -> GraphTensor:
    if isinstance(part, GraphTensor):
        return part
    return compute(graph, graph.take(graph.input, part.source.tolist()), part.steps)


def compute(graph: Graph, x: GraphTensor, steps: tuple[Step, ...]) -> GraphTensor:
    x, scale, shift = _centred(graph, x, steps)
    x = graph.mul(x, graph.constant(scale)) if (scale != 1).any() else x
    return graph.add(x, graph.constant(shift)) if (shift != 0).any() else x


def centred_tensor(graph: Graph, columns: GraphColumns) -> tuple[GraphTensor, Array, Array]:
    """`x` [rows, width], `scale`, `shift` float64 [width]: the columns are `x * scale + shift`.

    Large means are subtracted before anything is multiplied, or float32 would lose what is left.
    """
    made = []
    for part in columns.parts:
        x = part if isinstance(part, GraphTensor) else graph.take(graph.input, part.source.tolist())
        made.append(_centred(graph, x, () if isinstance(part, GraphTensor) else part.steps))
    return (
        graph.concat([m[0] for m in made]),
        np.concatenate([m[1] for m in made]),
        np.concatenate([m[2] for m in made]),
    )


def _centred(graph: Graph, x: GraphTensor, steps: tuple[Step, ...]) -> tuple[GraphTensor, Array, Array]:
    """Computes all but the last run of affine steps, of which only the centre is subtracted."""
    scale, offset = np.ones(x.width), np.zeros(x.width)
    for number, step in enumerate(steps):
        if step.kind in ("fill", "clip"):
            if number and ((scale != 1).any() or (offset != 0).any()):
                x = compute(graph, x, _affine_steps(scale, offset))
                scale, offset = np.ones(x.width), np.zeros(x.width)
            x = _limit(graph, x, step)
        elif step.kind in ("subtract", "add"):
            offset = offset + (step.values if step.kind == "add" else -step.values)
        else:
            factor = step.values if step.kind == "multiply" else 1.0 / step.values
            scale, offset = scale * factor, offset * factor
    centre = np.where(scale != 0, -offset / np.where(scale != 0, scale, 1.0), 0.0)
    centre = centre.astype(np.float32).astype(np.float64)
    if (centre != 0).any():
        x = graph.sub(x, graph.constant(centre))
    return x, scale, scale * centre + offset


def _affine_steps(scale: Array, offset: Array) -> tuple[Step, ...]:
    return (Step("multiply", scale), Step("add", offset))


def _limit(graph: Graph, x: GraphTensor, step: Step) -> GraphTensor:
    if step.kind == "fill":
        return graph.select(graph.is_nan(x), graph.constant(np.broadcast_to(step.values, (1, x.width))), x)
    low, high = (graph.constant(v) for v in step.values)
    return graph.minimum(graph.maximum(x, low), high)
