"""A table of nodes as .tflite operators.

All trees descend one level at once, as many levels as the deepest tree has. Leaves lead to shared end nodes
at the front of the table, one for each distinct value. The index of the end node that a row reaches is the
index of the value to add.
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
"""Bits of a float32's 24 that a sum of coarse parts may use."""


def compile_forest(context: ConversionContext, nodes: NodeTable, columns: GraphColumns) -> CompiledOutputs:
    """Compile the ensemble for `columns`."""
    nodes = to_fraction(nodes, context.fraction)
    context.reductions += [nodes.reduction] if nodes.reduction else []
    total = _raw_answers(context, nodes, columns)
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
        probabilities = graph.softmax(_scaled(graph, raw, nodes.slope))
        label = total.first_largest(graph)
        return CompiledOutputs(labels=(label,), probabilities=(probabilities,), decision=raw)
    labels, fractions = [], []
    for start, size in zip(np.cumsum((0, *nodes.blocks)), nodes.blocks, strict=False):
        block = total.take(graph, list(range(start, start + size)))
        labels.append(block.first_largest(graph))
        fractions.append(_divided(graph, block.rounded(graph), nodes.divisor))
    return CompiledOutputs(labels=tuple(labels), probabilities=tuple(fractions))


def _divided(graph: Graph, total: GraphTensor, divisor: float) -> GraphTensor:
    return graph.div(total, divisor) if divisor != 1.0 else total


def _scaled(graph: Graph, x: GraphTensor, factor: float) -> GraphTensor:
    return graph.mul(x, factor) if factor != 1.0 else x


@dataclass(frozen=True)
class SplitSum:
    """A sum in two float32 parts [rows, k]: `coarse` is exact, `fine` is the rest. Labels depend on both."""

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

    def above(self, graph: Graph, cut: float, inclusive: bool) -> GraphTensor:
        """int64 [rows]: 1 where the single sum is above `cut`. The sign of a float32 difference is exact."""
        compare = graph.greater_equal if inclusive else graph.greater
        coarse = float(np.float32(cut))
        difference = graph.sub(self.coarse, coarse) if coarse else self.coarse
        fine = float(np.float32(cut - coarse))
        if self.fine is not None or fine:
            rest = graph.sub(self.fine, fine) if self.fine is not None else -fine
            difference = graph.add(difference, rest)
        return graph.reshape(graph.cast(compare(difference, 0.0), "int64"), (ROWS,))


def _sigmoid(graph: Graph, nodes: NodeTable, total: SplitSum) -> CompiledOutputs:
    raw = _scaled(graph, total.rounded(graph), 1.0 / nodes.divisor)
    positive = graph.logistic(_scaled(graph, raw, nodes.slope))
    probabilities = graph.concat([graph.sub(1.0, positive), positive])
    label = total.above(graph, nodes.cut * nodes.divisor, nodes.inclusive)
    return CompiledOutputs(labels=(label,), probabilities=(probabilities,), decision=raw)


def _isolation(graph: Graph, nodes: NodeTable, total: SplitSum) -> CompiledOutputs:
    is_inlier = total.above(graph, nodes.cut * nodes.divisor, nodes.inclusive)
    signs = graph.constant([-1, 1], "int64")
    power = graph.exp(graph.mul(total.rounded(graph), -nodes.slope / nodes.divisor * float(np.log(2.0))))
    score = graph.reshape(graph.sub(nodes.cut_score, power), (ROWS,))
    return CompiledOutputs(labels=(graph.gather(signs, graph.cast(is_inlier, "int32")),), score=score)


def _raw_answers(context: ConversionContext, nodes: NodeTable, columns: GraphColumns) -> SplitSum:
    """The raw answers [rows, outputs], times `divisor`."""
    graph = context.graph
    thresholds = move_thresholds(nodes, columns, context.scaler_dtype)
    ends, values = _Descent(graph, nodes, columns, thresholds).ends()
    base = nodes.base * nodes.divisor
    per_output = nodes.trees if nodes.target is None else nodes.trees // nodes.outputs
    step = _step(np.abs(values).max(initial=0.0) * per_output + np.abs(base).max(initial=0.0))
    (coarse, fine), (base_coarse, base_fine) = _split_values(values, step), _split_values(base, step)
    parts = [coarse, fine] if fine.any() else [coarse]
    leaves = graph.gather(graph.constant(np.hstack(parts)), ends)  # [rows, trees, parts * width]
    count, k = len(parts), nodes.outputs
    if nodes.target is not None:  # each tree has one value: [coarse, fine] of each output in turn
        leaves = graph.reshape(leaves, (ROWS, per_output, k * count))
    sums = graph.total(leaves, axis=1)
    indices = [
        [o * count + h if nodes.target is not None else h * k + o for o in range(k)] for h in range(count)
    ]
    coarse_sum = graph.take(sums, indices[0])
    fine_sum = graph.take(sums, indices[1]) if count == 2 else None
    if base.any():
        coarse_sum = graph.add(coarse_sum, graph.constant(base_coarse))
        rest = graph.constant(base_fine[None, :])
        fine_sum = rest if fine_sum is None else graph.add(fine_sum, rest)
    return SplitSum(coarse_sum, fine_sum)


def _step(largest: float) -> float:
    """A number whose multiples add up to `largest` in float32 without rounding."""
    return float(2.0 ** (np.ceil(np.log2(largest)) - MANTISSA)) if largest > 0 else 1.0


def _split_values(values: Array, step: float) -> tuple[Array, Array]:
    coarse = np.rint(values / step) * step
    return coarse, (values - coarse).astype(np.float32)


class _Descent:
    """The operators that lead from the roots to the end nodes."""

    def __init__(
        self, graph: Graph, nodes: NodeTable, columns: GraphColumns, thresholds: InputThresholds
    ) -> None:
        self.graph, self.nodes, self.columns = graph, nodes, columns
        self.threshold, self.missing_left = thresholds.threshold, thresholds.missing_left

    def ends(self) -> tuple[GraphTensor, Array]:
        """(end nodes that the rows reach int32 [rows, trees], values of the end nodes [ends, width])."""
        graph, nodes = self.graph, self.nodes
        leaf = nodes.leaf
        values, end = np.unique(nodes.values[leaf], axis=0, return_inverse=True)
        shift = len(values)
        block, feature, threshold, mirrored = self._comparisons()
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
        at = graph.add(graph.cast(right, "int32"), graph.constant(tables[2][root], "int32"))
        for _ in range(nodes.depth - 1):
            x = graph.gather_in_row(block, graph.gather(features, at))
            right = graph.greater(x, graph.gather(thresholds, at))
            at = graph.add(graph.gather(lefts, at), graph.cast(right, "int32"))
        return (graph.gather(lefts, at) if nodes.depth else at), values

    def _comparisons(self) -> tuple[GraphTensor, Array, Array, Array]:
        """(block [rows, width], column of each node in it, threshold of each node, mirrored nodes bool [n]).

        Mirrored nodes compare the negated feature, so their children are exchanged. A node with an infinite
        threshold that sends missing values right compares whether the value is missing.
        """
        graph, nodes = self.graph, self.nodes
        block, feature = self._sources()
        tests_missing = ~nodes.leaf & ~self.missing_left & np.isposinf(self.threshold)
        mirrored = ~nodes.leaf & ~self.missing_left & ~tests_missing
        threshold = self.threshold.copy()
        blocks = [block]
        if mirrored.any():
            feature = np.where(mirrored, feature + len(blocks) * block.width, feature)
            threshold[mirrored] = np.nextafter(-threshold[mirrored], np.float32(-np.inf))
            blocks.append(graph.neg(block))
        if tests_missing.any():
            feature = np.where(tests_missing, feature + len(blocks) * block.width, feature)
            threshold[tests_missing] = 0.5
            blocks.append(graph.cast(graph.is_nan(block), "float32"))
        return graph.concat(blocks), feature.astype(np.int32), threshold, mirrored

    def _sources(self) -> tuple[GraphTensor, Array]:
        """(the input, if some columns are raw, and the computed columns; the column of each node in them)."""
        raw = any(isinstance(part, RawColumns) for part in self.columns.parts)
        blocks = [self.graph.input] if raw else []
        indices = []
        for part in self.columns.parts:
            if isinstance(part, RawColumns):
                indices.append(part.source)
            else:
                indices.append(sum(b.width for b in blocks) + np.arange(part.width))
                blocks.append(part)
        return self.graph.concat(blocks), np.concatenate(indices)[self.nodes.feature]


def _exchanged(left: Array, mirrored: Array) -> Array:
    """The node at each place after the children of `mirrored` nodes are exchanged."""
    slot = np.arange(len(left))
    first = left[mirrored]
    slot[first], slot[first + 1] = first + 1, first
    return slot
