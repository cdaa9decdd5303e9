"""Columns between the steps of a pipeline: computed tensors, or input features with steps still to do.

The steps of a scaler before trees need not be computed: `RawColumns` hold them until a converter needs the
numbers. Trees move their thresholds back through the steps instead (see `float32_thresholds`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from registry.rows import Array
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.writer import GraphTensor
from service.runtime.column_steps import FILL, ColumnStep, apply_step


@dataclass(frozen=True)
class RawColumns:
    """Input features `source` [columns], and the steps that are not computed yet."""

    source: Array
    steps: tuple[ColumnStep, ...] = ()

    @property
    def width(self) -> int:
        return len(self.source)

    def take(self, columns: Array) -> RawColumns:
        return RawColumns(self.source[columns], tuple(s.take(columns) for s in self.steps))

    def apply(self, step: ColumnStep) -> RawColumns:
        return replace(self, steps=(*self.steps, step))

    def evaluate(self, x: Array) -> Array:
        """Compute the steps for `x` [..., columns]. As in scikit-learn, results have the dtype of `x`."""
        for step in self.steps:
            x = apply_step(step, x).astype(x.dtype)
        return x


ColumnPart = RawColumns | GraphTensor


@dataclass(frozen=True)
class GraphColumns:
    """Raw columns and computed tensors [rows, width] side by side."""

    parts: tuple[ColumnPart, ...]

    @property
    def width(self) -> int:
        return sum(p.width for p in self.parts)

    def take(self, graph: Graph, columns: Array) -> GraphColumns:
        """A selection of the columns, in that order. Adjacent columns of one part stay in one part."""
        indices = np.asarray(columns, dtype=np.int64)
        if np.array_equal(indices, np.arange(self.width)):
            return self
        ends = np.cumsum([p.width for p in self.parts])
        owner = np.searchsorted(ends, indices, side="right")
        parts: list[ColumnPart] = []
        for run in np.split(np.arange(len(indices)), np.flatnonzero(np.diff(owner)) + 1):
            if not len(run):
                continue
            part = self.parts[owner[run[0]]]
            inside = indices[run] - (ends[owner[run[0]]] - part.width)
            is_raw = isinstance(part, RawColumns)
            parts.append(part.take(inside) if is_raw else graph.take(part, inside.tolist()))
        return GraphColumns(tuple(parts))

    def apply(self, graph: Graph, step: ColumnStep) -> GraphColumns:
        """Apply a step to all columns: recorded for raw columns, computed for tensors."""
        parts: list[ColumnPart] = []
        start = 0
        for part in self.parts:
            of_part = step.take(slice(start, start + part.width))
            is_raw = isinstance(part, RawColumns)
            parts.append(part.apply(of_part) if is_raw else compute(graph, part, (of_part,)))  # type: ignore[union-attr,arg-type]
            start += part.width
        return GraphColumns(tuple(parts))


def side_by_side(columns: list[GraphColumns]) -> GraphColumns:
    return GraphColumns(tuple(part for c in columns for part in c.parts))


def to_tensor(graph: Graph, columns: GraphColumns) -> GraphTensor:
    """Compute all columns: float32 [rows, width]."""
    return graph.concat([_part_tensor(graph, part) for part in columns.parts])


def _part_tensor(graph: Graph, part: ColumnPart) -> GraphTensor:
    if isinstance(part, GraphTensor):
        return part
    return compute(graph, graph.take(graph.input, part.source.tolist()), part.steps)


def compute(graph: Graph, x: GraphTensor, steps: tuple[ColumnStep, ...]) -> GraphTensor:
    x, scale, shift = _centred(graph, x, steps)
    x = graph.mul(x, graph.constant(scale)) if (scale != 1).any() else x
    return graph.add(x, graph.constant(shift)) if (shift != 0).any() else x


def centred_tensor(graph: Graph, columns: GraphColumns) -> tuple[GraphTensor, Array, Array]:
    """`x` [rows, width], `scale` and `shift` float64 [width], where the columns are `x * scale + shift`.

    Large means are subtracted before the multiplication; otherwise float32 loses the digits of the rest.
    """
    centred = []
    for part in columns.parts:
        x = part if isinstance(part, GraphTensor) else graph.take(graph.input, part.source.tolist())
        centred.append(_centred(graph, x, () if isinstance(part, GraphTensor) else part.steps))
    tensors, scales, shifts = zip(*centred, strict=True)
    return graph.concat(list(tensors)), np.concatenate(scales), np.concatenate(shifts)


def _centred(graph: Graph, x: GraphTensor, steps: tuple[ColumnStep, ...]) -> tuple[GraphTensor, Array, Array]:
    """Compute the steps except the last affine ones. Of those, only the centre is subtracted."""
    scale, offset = np.ones(x.width), np.zeros(x.width)
    for step in steps:
        if step.operation in (FILL, "maximum", "minimum"):
            if (scale != 1).any() or (offset != 0).any():
                x = compute(graph, x, (ColumnStep("multiply", scale), ColumnStep("add", offset)))
                scale, offset = np.ones(x.width), np.zeros(x.width)
            x = _limit(graph, x, step)
        elif step.operation in ("subtract", "add"):
            offset = offset + (step.numbers if step.operation == "add" else -step.numbers)
        else:
            factor = step.numbers if step.operation == "multiply" else 1.0 / step.numbers
            scale, offset = scale * factor, offset * factor
    centre = np.where(scale != 0, -offset / np.where(scale != 0, scale, 1.0), 0.0)
    centre = centre.astype(np.float32).astype(np.float64)
    if (centre != 0).any():
        x = graph.sub(x, graph.constant(centre))
    return x, scale, scale * centre + offset


def _limit(graph: Graph, x: GraphTensor, step: ColumnStep) -> GraphTensor:
    if step.operation == FILL:
        numbers = graph.constant(np.broadcast_to(step.numbers, (1, x.width)))
        return graph.select(graph.is_nan(x), numbers, x)
    operator = graph.maximum if step.operation == "maximum" else graph.minimum
    return operator(x, graph.constant(step.numbers))
