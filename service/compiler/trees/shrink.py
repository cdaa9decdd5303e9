"""Make tree ensembles smaller, with nearly the same answers: drop trees and merge leaves.

Leaves are merged bottom up, in the order in which it changes the answers on the training rows least (the
increase of the squared error, as in Ward's clustering). Trees are dropped from the end: boosting stops
earlier, and a forest is the mean of fewer trees.
"""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np

from registry.rows import Array
from service.compiler.trees.tree_arrays import Tree, node_arrays
from service.runtime.nodes import NodeTable

MIN_LEAVES = 4
"""Smaller trees are of no use."""
VALUE_BITS = 12
"""Precision of the leaf values of a smaller ensemble."""


def shrink(nodes: NodeTable, trees: int, leaves: int | None) -> NodeTable:
    """Keep the first `trees` trees, each with at most `leaves` leaves, but at least one tree and one leaf.

    Boosting with several outputs keeps whole rounds. `reduction` of the result describes what was removed.
    """
    per_round = 1 if nodes.target is None else nodes.outputs
    count = min(nodes.trees, max(per_round, trees // per_round * per_round))
    ends = np.append(nodes.root, len(nodes.left))
    columns = node_arrays([_merged(nodes, int(ends[t]), int(ends[t + 1]), leaves) for t in range(count)])
    small = replace(
        nodes,
        **(columns | {"values": _rounded(np.asarray(columns["values"]))}),  # type: ignore[arg-type]
        weight=None if nodes.weight is None else nodes.weight[:count],
        target=None if nodes.target is None else nodes.target[:count],
    )
    return replace(small, reduction=_describe_reduction(nodes, small))


def _rounded(values: Array) -> Array:
    """Round to VALUE_BITS of the largest value.

    This changes answers far less than merging does. The file becomes half as large, as many values are equal.
    """
    largest = float(np.abs(values).max(initial=0.0))
    step = 2.0 ** (np.ceil(np.log2(largest)) - VALUE_BITS) if largest > 0 else 1.0
    return np.asarray(np.rint(values / step) * step)


def to_fraction(nodes: NodeTable, fraction: float) -> NodeTable:
    """Keep about `fraction` of the nodes.

    Boosting stops earlier. A mean keeps the square root of `fraction` of the trees, and of the leaves as many
    as remain: on six datasets, labels and accuracy changed less than with fewer trees alone or fewer leaves
    alone.
    """
    if fraction >= 1.0:
        return nodes
    sizes = np.diff(np.append(nodes.root, len(nodes.left)))
    if nodes.weight is None:
        return shrink(nodes, round(nodes.trees * fraction), None)
    trees = max(1, round(nodes.trees * fraction**0.5))
    leaves = (sizes[:trees] + 1) // 2
    target = fraction * (sizes.sum() + nodes.trees) / 2  # a tree of n leaves has 2n - 1 nodes
    low, high = MIN_LEAVES, int(leaves.max())
    while low < high:  # the largest bound with at most `target` leaves
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(leaves, middle).sum() <= target else (low, middle - 1)
    return shrink(nodes, trees, low)


def _merged(nodes: NodeTable, start: int, end: int, leaves: int | None) -> Tree:
    """The tree of the nodes `start` to `end`, with at most `leaves` leaves."""
    place = np.arange(start, end)
    leaf = nodes.left[start:end] == place
    left = np.where(leaf, -1, nodes.left[start:end] - start)
    right = np.where(leaf, -1, left + 1)
    values, cover = nodes.values[start:end].copy(), nodes.cover[start:end]
    if leaves is not None and leaf.sum() > leaves:
        left = _merge(left.copy(), values, cover, int(leaf.sum()) - max(leaves, 1))
        right = np.where(left < 0, -1, left + 1)
    columns = (nodes.feature[start:end], nodes.threshold[start:end], left, right)
    return Tree(*columns, nodes.missing_left[start:end], values, cover)


def _merge(left: Array, values: Array, cover: Array, times: int) -> Array:
    """`left` after `times` merges of two sibling leaves into their parent, which gets their mean value."""
    parent = np.full(len(left), -1)
    inner = np.flatnonzero(left >= 0)
    parent[left[inner]] = inner
    parent[left[inner] + 1] = inner

    def candidate(node: int) -> tuple[float, int]:
        child = left[node]
        weight = cover[child] * cover[child + 1] / max(cover[child] + cover[child + 1], 1e-300)
        return float(weight * ((values[child] - values[child + 1]) ** 2).sum()), node

    heap = [candidate(n) for n in inner.tolist() if left[left[n]] < 0 and left[left[n] + 1] < 0]
    heapq.heapify(heap)
    for _ in range(times):
        _, node = heapq.heappop(heap)
        child = left[node]
        weights = np.maximum(cover[child : child + 2], 1e-300)
        values[node] = weights @ values[child : child + 2] / weights.sum()
        left[node] = -1
        above = int(parent[node])
        if above >= 0 and left[left[above]] < 0 and left[left[above] + 1] < 0:
            heapq.heappush(heap, candidate(above))
    return left


def _describe_reduction(before: NodeTable, after: NodeTable) -> str:
    parts = []
    if after.trees < before.trees:
        parts.append(f"{after.trees} of {before.trees} trees")
    if len(after.left) < len(before.left):
        parts.append(f"{int(after.leaf.sum())} of {int(before.leaf.sum())} leaves")
    return f"kept {' and '.join(parts)}, leaf values to {VALUE_BITS} bits" if parts else ""
