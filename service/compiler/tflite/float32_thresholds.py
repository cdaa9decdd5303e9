"""A tree's comparisons as comparisons of what the device sends, exact for every float32.

`x > t` with a float32 `x` is `x > t` rounded down. Where scalers come before, the threshold is moved back
through them: the largest float32 that they still take to at most `t`, found by bisection over all floats.
Where missing values go to the right, the node compares the negated feature and its children are exchanged,
because a comparison with NaN is false.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from registry.rows import Array
from service.compiler.tflite.graph_columns import GraphColumns, RawColumns
from service.runtime.nodes import NodeTable

LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class InputThresholds:
    """By node: the column of the compared block, the float32 threshold, and where NaN goes."""

    threshold: Array
    missing_left: Array


def down(values: Array) -> Array:
    """The largest float32 that is not above each double; infinities stay."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    return np.where(single > values, np.nextafter(single, np.float32(-np.inf)), single).astype(np.float32)


def move_thresholds(nodes: NodeTable, columns: GraphColumns, kept: type[np.floating]) -> InputThresholds:
    """`kept` is the dtype in which the estimator's scalers answer."""
    threshold, missing_left = down(nodes.threshold), nodes.missing_left.copy()
    start = 0
    for part in columns.parts:
        inside = (nodes.feature >= start) & (nodes.feature < start + part.width) & ~nodes.leaf
        if isinstance(part, RawColumns) and part.steps and inside.any():
            at = np.flatnonzero(inside)
            chain = part.take(nodes.feature[at] - start)
            threshold[at] = _back(chain, nodes.threshold[at], nodes.rounded, kept)
            nothing = _seen(chain, np.full(len(at), np.nan, dtype=np.float32), nodes.rounded, kept)
            missing_left[at] = np.where(np.isnan(nothing), missing_left[at], nothing <= nodes.threshold[at])
        start += part.width
    return InputThresholds(threshold, missing_left)


def _seen(chain: RawColumns, x: Array, rounded: bool, kept: type[np.floating]) -> Array:
    """What the tree compares, as doubles, when the device sends `x`."""
    seen = chain.evaluate(x.astype(kept))
    with np.errstate(over="ignore"):
        return (seen.astype(np.float32) if rounded else seen).astype(np.float64)


def _back(chain: RawColumns, wanted: Array, rounded: bool, kept: type[np.floating]) -> Array:
    """The largest finite float32 `x` of each with `_seen(x) <= wanted`; -inf when there is none."""
    low = np.full(len(wanted), _rank(np.float32(-LARGEST)) - 1)
    high = np.full(len(wanted), _rank(np.float32(LARGEST)))
    while (low < high).any():
        middle = (low + high + 1) >> 1
        fits = _seen(chain, _float(middle), rounded, kept) <= wanted
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
    return np.where(np.isposinf(wanted), np.float32(np.inf), _float(low)).astype(np.float32)


def _rank(value: np.float32) -> int:
    """Floats in order are integers in order, once the negative ones are counted backwards."""
    bits = int(np.asarray(value).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _float(rank: Array) -> Array:
    bits = np.where(rank >= 0, rank, -rank | 0x80000000)
    return (bits & 0xFFFFFFFF).astype(np.uint32).view(np.float32)
