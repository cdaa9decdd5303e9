"""Fewer trees and merged leaves: smaller ensembles that answer nearly the same, and what that gave up.

Leaves are merged bottom up, first where it changes the trees' answers on their own training rows least (the
increase of the squared error, as in Ward's clustering). Trees are dropped from the end, which for boosting is
stopping earlier, and for forests a mean over fewer.
"""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np

from registry.rows import Array
from service.compiler.trees.tree_arrays import Tree, table
from service.runtime.nodes import Nodes

FEWEST_LEAVES = 4
"""Smaller trees than this say nothing."""
BITS = 12
"""Of the leaf values that are kept when anything is given up."""


def shrink(nodes: Nodes, trees: int, leaves: int | None) -> Nodes:
    """The first `trees` trees (for boosting of several outputs: whole rounds of them), each with at most
    `leaves` leaves. `given_up` of the result says in words what went. At least one tree and leaf stay."""
    round_of = 1 if nodes.target is None else nodes.outputs
    kept = min(nodes.trees, max(round_of, trees // round_of * round_of))
    ends = np.append(nodes.root, len(nodes.left))
    made = [_merged(nodes, int(ends[t]), int(ends[t + 1]), leaves) for t in range(kept)]
    columns = table(made)
    small = replace(
        nodes,
        **(columns | {"values": _rounded(np.asarray(columns["values"]))}),  # type: ignore[arg-type]
        weight=None if nodes.weight is None else nodes.weight[:kept],
        target=None if nodes.target is None else nodes.target[:kept],
    )
    return replace(small, given_up=_words(nodes, small))


def _rounded(values: Array) -> Array:
    """To BITS of the largest: far less than merging changes, and half the bytes, as many become equal."""
    largest = float(np.abs(values).max(initial=0.0))
    step = 2.0 ** (np.ceil(np.log2(largest)) - BITS) if largest > 0 else 1.0
    return np.asarray(np.rint(values / step) * step)


def to_fraction(nodes: Nodes, fraction: float) -> Nodes:
    """About `fraction` of the nodes. Boosting stops earlier; of a mean, the root of it in trees and the rest
    in leaves, which kept more labels and more accuracy than either alone, on six datasets."""
    if fraction >= 1.0:
        return nodes
    sizes = np.diff(np.append(nodes.root, len(nodes.left)))
    if nodes.weight is None:
        return shrink(nodes, round(nodes.trees * fraction), None)
    trees = max(1, round(nodes.trees * fraction**0.5))
    leaves = (sizes[:trees] + 1) // 2
    wanted = fraction * (sizes.sum() + nodes.trees) / 2  # a tree of n leaves has 2n - 1 nodes
    low, high = FEWEST_LEAVES, int(leaves.max())
    while low < high:  # the largest bound that keeps as few
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(leaves, middle).sum() <= wanted else (low, middle - 1)
    return shrink(nodes, trees, low)


def _merged(nodes: Nodes, start: int, end: int, leaves: int | None) -> Tree:
    """The tree of nodes `start` to `end`, with at most `leaves` leaves."""
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
    """`left` after so many merges of two sibling leaves into their parent, whose value is then their mean."""
    parent = np.full(len(left), -1)
    inner = np.flatnonzero(left >= 0)
    parent[left[inner]] = inner
    parent[left[inner] + 1] = inner

    def candidate(node: int) -> tuple[float, int]:
        a = left[node]
        share = cover[a] * cover[a + 1] / max(cover[a] + cover[a + 1], 1e-300)
        return float(share * ((values[a] - values[a + 1]) ** 2).sum()), node

    heap = [candidate(n) for n in inner.tolist() if left[left[n]] < 0 and left[left[n] + 1] < 0]
    heapq.heapify(heap)
    for _ in range(times):
        _, node = heapq.heappop(heap)
        a = left[node]
        weights = np.maximum(cover[a : a + 2], 1e-300)
        values[node] = weights @ values[a : a + 2] / weights.sum()
        left[node] = -1
        above = int(parent[node])
        if above >= 0 and left[left[above]] < 0 and left[left[above] + 1] < 0:
            heapq.heappush(heap, candidate(above))
    return left


def _words(before: Nodes, after: Nodes) -> str:
    said = []
    if after.trees < before.trees:
        said.append(f"{after.trees} of {before.trees} trees")
    if len(after.left) < len(before.left):
        said.append(f"{int(after.leaf.sum())} of {int(before.leaf.sum())} leaves")
    return f"kept {' and '.join(said)}, leaf values to {BITS} bits" if said else ""
