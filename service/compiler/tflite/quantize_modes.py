"""The table of quantize modes: the recipe for ai-edge-quantizer and the default bounds of each mode.

A new mode is added to `registry/vocabulary.py` and here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.recipe_manager import RecipeManager

from registry.vocabulary import Quantize


class DefaultBounds(NamedTuple):
    """Bounds of an export where the request gives none."""

    labels: float  # share of the labels that may differ
    beside_labels: float | None  # difference of the numbers of an export that has labels; None: unlimited
    numbers: float  # difference of the numbers of an export without labels
    accuracy_drop: float


class QuantizeMode(NamedTuple):
    """One mode other than `none`."""

    add_recipe: Callable[..., None]
    """Adds the mode to a `RecipeManager`; keyword arguments select the operators."""
    bounds: DefaultBounds
    needs_calibration: bool = False
    """Activations are quantized in advance, with ranges from calibration rows."""


def _float16(recipe: RecipeManager, **operators: Any) -> None:
    recipe.add_weight_only_config(**operators, num_bits=16, algorithm_key=AlgorithmName.FLOAT_CASTING)


def _dynamic(recipe: RecipeManager, **operators: Any) -> None:
    recipe.add_dynamic_config(**operators, num_bits=8)


def _int8(recipe: RecipeManager, **operators: Any) -> None:
    recipe.add_static_config(**operators, activation_num_bits=8, weight_num_bits=8)


MODES: dict[Quantize, QuantizeMode] = {
    "float16": QuantizeMode(_float16, DefaultBounds(0.01, 0.01, 0.01, 0.005)),
    "dynamic": QuantizeMode(_dynamic, DefaultBounds(0.02, 0.1, 0.1, 0.01)),
    "int8": QuantizeMode(_int8, DefaultBounds(0.05, None, 0.3, 0.02), needs_calibration=True),
}


def needs_calibration(mode: Quantize) -> bool:
    return mode in MODES and MODES[mode].needs_calibration
