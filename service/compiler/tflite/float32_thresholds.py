"""Thresholds of trees as comparisons of the float32 numbers that a device sends, exact for every float32.

For a float32 `x`, `x > t` is `x > round_down(t)`. Behind scalers, the threshold is moved back through them:
the largest float32 that they map to at most `t`, found by bisection over all floats. Where missing values go
right, `forest_graph` compares the negated feature and exchanges the children, because a comparison with NaN
is false.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from registry.rows import Array
from service.compiler.tflite.graph_columns import GraphColumns, RawColumns
from service.runtime.nodes import NodeTable, round_down

MAX_FLOAT32 = np.finfo(np.float32).max


@dataclass(frozen=True)
class InputThresholds:
    """For each node: the float32 threshold of its input column, and whether NaN goes left."""

    threshold: Array
    missing_left: Array


def move_thresholds(nodes: NodeTable, columns: GraphColumns, dtype: type[np.floating]) -> InputThresholds:
    """Move the thresholds back to the raw columns.

    `dtype` is that of the rows that the estimator's scalers return.
    """
    threshold, missing_left = round_down(nodes.threshold), nodes.missing_left.copy()
    start = 0
    for part in columns.parts:
        inside = (nodes.feature >= start) & (nodes.feature < start + part.width) & ~nodes.leaf
        if isinstance(part, RawColumns) and part.steps and inside.any():
            at = np.flatnonzero(inside)
            of_nodes = part.take(nodes.feature[at] - start)
            threshold[at] = largest_input(of_nodes, nodes.threshold[at], nodes.rounded, dtype)
            missing = np.full(len(at), np.nan, dtype=np.float32)
            scaled = compared_numbers(of_nodes, missing, nodes.rounded, dtype)
            missing_left[at] = np.where(np.isnan(scaled), missing_left[at], scaled <= nodes.threshold[at])
        start += part.width
    return InputThresholds(threshold, missing_left)


def compared_numbers(columns: RawColumns, x: Array, rounded: bool, dtype: type[np.floating]) -> Array:
    """The numbers that the tree compares, float64, when the device sends `x`."""
    scaled = columns.evaluate(x.astype(dtype))
    with np.errstate(over="ignore"):
        return (scaled.astype(np.float32) if rounded else scaled).astype(np.float64)


def largest_input(columns: RawColumns, limits: Array, rounded: bool, dtype: type[np.floating]) -> Array:
    """For each limit, the largest finite float32 `x` with `compared_numbers(x) <= limit`, or -inf."""
    low = np.full(len(limits), float_rank(np.float32(-MAX_FLOAT32)) - 1)
    high = np.full(len(limits), float_rank(np.float32(MAX_FLOAT32)))
    while (low < high).any():
        middle = (low + high + 1) >> 1
        fits = compared_numbers(columns, float_at_rank(middle), rounded, dtype) <= limits
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
    return np.where(np.isposinf(limits), np.float32(np.inf), float_at_rank(low)).astype(np.float32)


def float_rank(value: np.float32) -> int:
    """An integer whose order is the order of the floats: negative floats count backwards from 0."""
    bits = int(np.asarray(value).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def float_at_rank(rank: Array) -> Array:
    bits = np.where(rank >= 0, rank, -rank | 0x80000000)
    return (bits & 0xFFFFFFFF).astype(np.uint32).view(np.float32)
