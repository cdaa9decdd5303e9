"""Padded rows: sequences that are shorter than a model's input, filled up with the value that it masks.

Random rows never hold this value, so that they do not show what a model answers to masked steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from registry.rows import Array, Rows

MAX_CUTS = 12
BASE_ROWS = 24


@dataclass(frozen=True)
class Padding:
    """The values that fill up sequences, and the features of one step of each input of the model.

    `values` is empty for a model without masks and recurrent layers.
    """

    values: tuple[float, ...]
    sizes: tuple[int, ...]  # features of each input
    step_sizes: tuple[int, ...]  # of these, features of one step


def describe_padding(model: Any, inputs: list[Any]) -> Padding:
    """The values of Masking and Embedding layers; 0 for recurrent and attention layers without them."""
    layers = list(model._flatten_layers())
    masking = [layer for layer in layers if type(layer).__name__ == "Masking"]
    values = {float(np.float32(layer.mask_value)) for layer in masking}
    if any(getattr(layer, "mask_zero", False) or _takes_sequences(layer) for layer in layers):
        values.add(0.0)
    sizes = tuple(math.prod(tensor.shape[1:]) for tensor in inputs)
    flat_step = _step_of_flat_input(masking)
    steps = []
    for tensor, size in zip(inputs, sizes, strict=True):
        step = math.prod(tensor.shape[2:]) if len(tensor.shape) > 1 else size
        steps.append(flat_step if len(tensor.shape) == 2 and flat_step and size % flat_step == 0 else step)
    return Padding(tuple(sorted(values)), sizes, tuple(steps))


def _takes_sequences(layer: Any) -> bool:
    """Recurrent layers have `unroll`; attention layers are named so."""
    return hasattr(layer, "unroll") or "Attention" in type(layer).__name__


def _step_of_flat_input(masking: list[Any]) -> int | None:
    """The features of one step where a Masking layer follows the reshape of a flat input."""
    for layer in masking:
        if not layer._inbound_nodes:
            continue
        shape: tuple[int | None, ...] = tuple(layer._inbound_nodes[0].input_tensors[0].shape)
        if None not in shape[1:]:
            return math.prod(n for n in shape[2:] if n is not None)
    return None


def padded_rows(rows: Rows, padding: Padding) -> Rows:
    """Rows of `rows` with steps at the end, at the start, in between, or all steps filled with each value."""
    assert rows.matrix is not None
    random = np.random.default_rng(0)
    base = rows.matrix[np.linspace(0, len(rows) - 1, BASE_ROWS).astype(int)]
    blocks = []
    for value in padding.values:
        starts = np.concatenate([[0], np.cumsum(padding.sizes)])
        for first, size, step in zip(starts, padding.sizes, padding.step_sizes, strict=False):
            for mask in _step_masks(size // step, random):
                block = base.copy()
                chosen = np.resize(np.repeat(mask, step, axis=1), (BASE_ROWS, size))
                block[:, first : first + size][chosen] = value
                blocks.append(block)
    return Rows(matrix=np.concatenate(blocks))


def _step_masks(steps: int, random: np.random.Generator) -> list[Array]:
    """bool [rows, steps] each: tails, heads, random steps, and all steps."""
    cuts = np.unique(np.linspace(0, steps, MAX_CUTS).astype(int))
    position = np.arange(steps)
    tails = position[None, :] >= cuts[:, None]
    return [tails, ~tails, random.random((BASE_ROWS, steps)) < 0.5]
