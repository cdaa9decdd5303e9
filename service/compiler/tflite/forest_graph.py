"""A table of nodes as operators: every tree takes one step down at once, as deep as the deepest goes.

Leaves lead to shared ends, one for each distinct value, at the front of the table. So the number of the end
reached is the row of the values to add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from registry.rows import Array
from service.compiler.tflite.converter import CompiledOutputs, ConversionContext
from service.compiler.tflite.float32_thresholds import InputThresholds, move_thresholds
from service.compiler.tflite.graph_columns import GraphColumns, RawColumns
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.writer import ROWS, GraphTensor
from service.compiler.trees.shrink import to_fraction
from service.runtime.nodes import NodeTable

MANTISSA = 22
"""Bits of float32's 24 that a sum of coarse halves may use."""


def compile_forest(context: ConversionContext, nodes: NodeTable, columns: GraphColumns) -> CompiledOutputs:
    """The ensemble's answer to `columns`."""
    nodes = to_fraction(nodes, context.fraction)
    context.reduction += [nodes.reduction] if nodes.reduction else []
    total = _raw(context, nodes, columns)
    graph = context.graph
    if nodes.link == "identity":
        return CompiledOutputs(value=_divided(graph, total.rounded(graph), nodes.divisor))
    if nodes.link == "exp":
        return CompiledOutputs(value=graph.exp(total.rounded(graph)))
    if nodes.link == "isolation":
        return _isolation(graph, nodes, total)
    if nodes.link == "sigmoid":
        return _sigmoid(graph, nodes, total)
    if nodes.link == "softmax":
        raw = _scaled(graph, total.rounded(graph), 1.0 / nodes.divisor)
        chances = graph.softmax(_scaled(graph, raw, nodes.slope))
        return CompiledOutputs(labels=(total.first_largest(graph),), probabilities=(chances,), decision=raw)
    labels, parts = [], []
    for start, size in zip(np.cumsum((0, *nodes.blocks)), nodes.blocks, strict=False):
        block = total.take(graph, list(range(start, start + size)))
        labels.append(block.first_largest(graph))
        parts.append(_divided(graph, block.rounded(graph), nodes.divisor))
    return CompiledOutputs(labels=tuple(labels), probabilities=tuple(parts))


def _divided(graph: Graph, total: GraphTensor, divisor: float) -> GraphTensor:
    return graph.div(total, divisor) if divisor != 1.0 else total


def _scaled(graph: Graph, x: GraphTensor, factor: float) -> GraphTensor:
    return graph.mul(x, factor) if factor != 1.0 else x


@dataclass(frozen=True)
class SplitSum:
    """A sum in two float32 halves [rows, k]: `coarse` is exact, `fine` what is left; labels see both."""

    coarse: GraphTensor
    fine: GraphTensor | None

    def rounded(self, graph: Graph) -> GraphTensor:
        return self.coarse if self.fine is None else graph.add(self.coarse, self.fine)

    def take(self, graph: Graph, columns: list[int]) -> SplitSum:
        fine = graph.take(self.fine, columns) if self.fine is not None else None
        return SplitSum(graph.take(self.coarse, columns), fine)

    def first_largest(self, graph: Graph) -> GraphTensor:
        if self.fine is None:
            return graph.argmax(self.coarse)
        ahead = graph.sub(self.coarse, graph.largest(self.coarse, axis=1, keep=True))
        return graph.argmax(graph.add(ahead, self.fine))

    def beyond(self, graph: Graph, cut: float, inclusive: bool) -> GraphTensor:
        """int64 [rows], 1 where the (only) sum is above `cut`; the sign of a float32 sum is never wrong."""
        compare = graph.greater_equal if inclusive else graph.greater
        coarse = float(np.float32(cut))
        left = graph.sub(self.coarse, coarse) if coarse else self.coarse
        fine = float(np.float32(cut - coarse))
        if self.fine is not None or fine:
            left = graph.add(left, graph.sub(self.fine, fine) if self.fine is not None else -fine)
        return graph.reshape(graph.cast(compare(left, 0.0), "int64"), (ROWS,))


def _sigmoid(graph: Graph, nodes: NodeTable, total: SplitSum) -> CompiledOutputs:
    raw = _scaled(graph, total.rounded(graph), 1.0 / nodes.divisor)
    positive = graph.logistic(_scaled(graph, raw, nodes.slope))
    chances = graph.concat([graph.sub(1.0, positive), positive])
    label = total.beyond(graph, nodes.cut * nodes.divisor, nodes.inclusive)
    return CompiledOutputs(labels=(label,), probabilities=(chances,), decision=raw)


def _isolation(graph: Graph, nodes: NodeTable, total: SplitSum) -> CompiledOutputs:
    inside = total.beyond(graph, nodes.cut * nodes.divisor, nodes.inclusive)
    signs = graph.constant([-1, 1], "int64")
    power = graph.exp(graph.mul(total.rounded(graph), -nodes.slope / nodes.divisor * float(np.log(2.0))))
    score = graph.reshape(graph.sub(nodes.cut_score, power), (ROWS,))
    return CompiledOutputs(labels=(graph.gather(signs, graph.cast(inside, "int32")),), score=score)


def _raw(context: ConversionContext, nodes: NodeTable, columns: GraphColumns) -> SplitSum:
    """`divisor` times the raw answers [rows, outputs]."""
    graph = context.graph
    ends, values = _Walk(graph, nodes, columns, move_thresholds(nodes, columns, context.kept)).ends()
    base = nodes.base * nodes.divisor
    per_output = nodes.trees if nodes.target is None else nodes.trees // nodes.outputs
    step = _step(np.abs(values).max(initial=0.0) * per_output + np.abs(base).max(initial=0.0))
    (coarse, fine), (base_coarse, base_fine) = _halves(values, step), _halves(base, step)
    halves = [coarse, fine] if fine.any() else [coarse]
    leaves = graph.gather(graph.constant(np.hstack(halves)), ends)  # [rows, trees, halves * width]
    count, k = len(halves), nodes.outputs
    if nodes.target is not None:  # every tree has one value: [coarse, fine] of each output in turn
        leaves = graph.reshape(leaves, (ROWS, per_output, k * count))
    sums = graph.total(leaves, axis=1)
    columns_of = [
        [o * count + h if nodes.target is not None else h * k + o for o in range(k)] for h in range(count)
    ]
    first = graph.take(sums, columns_of[0])
    second = graph.take(sums, columns_of[1]) if count == 2 else None
    if base.any():
        first = graph.add(first, graph.constant(base_coarse))
        rest = graph.constant(base_fine[None, :])
        second = rest if second is None else graph.add(second, rest)
    return SplitSum(first, second)


def _step(largest: float) -> float:
    """Multiples of it add up to `largest` without rounding, in float32."""
    return float(2.0 ** (np.ceil(np.log2(largest)) - MANTISSA)) if largest > 0 else 1.0


def _halves(values: Array, step: float) -> tuple[Array, Array]:
    coarse = np.rint(values / step) * step
    return coarse, (values - coarse).astype(np.float32)


class _Walk:
    """The steps from the roots to the ends."""

    def __init__(self, graph: Graph, nodes: NodeTable, columns: GraphColumns, at: InputThresholds) -> None:
        self.graph, self.nodes, self.columns = graph, nodes, columns
        self.threshold, self.missing_left = at.threshold, at.missing_left

    def ends(self) -> tuple[GraphTensor, Array]:
        """int32 [rows, trees], and the values [ends, width] they number."""
        graph, nodes = self.graph, self.nodes
        leaf = nodes.leaf
        values, end = np.unique(nodes.values[leaf], axis=0, return_inverse=True)
        shift = len(values)
        block, feature, threshold, mirrored = self._compared()
        left = np.where(leaf, 0, nodes.left + shift)
        left[leaf] = end.reshape(-1)
        slot = _exchanged(nodes.left, mirrored)
        tables = (
            np.concatenate([np.zeros(shift, dtype=np.int32), feature[slot]]),
            np.concatenate([np.full(shift, np.inf, dtype=np.float32), threshold[slot]]),
            np.concatenate([np.arange(shift), left[slot]]),
        )
        features, thresholds, lefts = (
            graph.constant(t, d) for t, d in zip(tables, ("int32", "float32", "int32"), strict=True)
        )
        root = nodes.root + shift
        x = graph.gather(block, graph.constant(tables[0][root], "int32"), axis=1)
        right = graph.greater(x, graph.constant(tables[1][root]))
        here = graph.add(graph.cast(right, "int32"), graph.constant(tables[2][root], "int32"))
        for _ in range(nodes.depth - 1):
            x = graph.gather_in_row(block, graph.gather(features, here))
            right = graph.greater(x, graph.gather(thresholds, here))
            here = graph.add(graph.gather(lefts, here), graph.cast(right, "int32"))
        return (graph.gather(lefts, here) if nodes.depth else here), values

    def _compared(self) -> tuple[GraphTensor, Array, Array, Array]:
        """What the nodes compare: a block [rows, width], each node's column of it and threshold, and which
        nodes have their children exchanged, because they compare the negated feature.

        A threshold of infinity with missing values to the right asks only whether the value is missing.
        """
        graph, nodes = self.graph, self.nodes
        block, feature = self._sources()
        asks_missing = ~nodes.leaf & ~self.missing_left & np.isposinf(self.threshold)
        mirrored = ~nodes.leaf & ~self.missing_left & ~asks_missing
        threshold = self.threshold.copy()
        blocks = [block]
        if mirrored.any():
            feature = np.where(mirrored, feature + len(blocks) * block.width, feature)
            threshold[mirrored] = np.nextafter(-threshold[mirrored], np.float32(-np.inf))
            blocks.append(graph.neg(block))
        if asks_missing.any():
            feature = np.where(asks_missing, feature + len(blocks) * block.width, feature)
            threshold[asks_missing] = 0.5
            blocks.append(graph.cast(graph.is_nan(block), "float32"))
        return graph.concat(blocks), feature.astype(np.int32), threshold, mirrored

    def _sources(self) -> tuple[GraphTensor, Array]:
        """The input (where some columns are raw) beside the computed columns; each node's column of that."""
        raw = any(isinstance(part, RawColumns) for part in self.columns.parts)
        blocks = [self.graph.input] if raw else []
        column_of = []
        for part in self.columns.parts:
            if isinstance(part, RawColumns):
                column_of.append(part.source)
            else:
                column_of.append(sum(b.width for b in blocks) + np.arange(part.width))
                blocks.append(part)
        return self.graph.concat(blocks), np.concatenate(column_of)[self.nodes.feature]


def _exchanged(left: Array, mirrored: Array) -> Array:
    """Which node comes to stand in each place when the children of `mirrored` nodes change places."""
    slot = np.arange(len(left))
    first = left[mirrored]
    slot[first], slot[first + 1] = first + 1, first
    return slot
