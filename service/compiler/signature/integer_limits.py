"""Limits of integers that a model's input cannot hold, as enforced bounds of the signature.

Runtimes cast numbers to the type of a graph's input without a check: 300 in a uint8 input would be 44. Where
an integer feature is passed as float32, neighbouring integers beyond 2^24 would be the same number.
"""

from __future__ import annotations

import msgspec

from registry.errors import Refused
from registry.signature import MAX_FLOAT32_INTEGER, MAX_SAFE_INTEGER, Input, describe_bounds
from service.runtime.codec.columns import show

INTEGER_LIMITS: dict[str, tuple[int, int]] = {
    "bool": (0, 1),
    "uint8": (0, 2**8 - 1),
    "int8": (-(2**7), 2**7 - 1),
    "uint16": (0, 2**16 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "uint32": (0, 2**32 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "uint64": (0, MAX_SAFE_INTEGER),
    "float16": (-(2**11), 2**11),
    "float32": (-MAX_FLOAT32_INTEGER, MAX_FLOAT32_INTEGER),
}
"""By the type of a graph's input: the integers that it holds exactly. Wider types hold all that the codec
accepts."""


def limit_integers(feature: Input, limits: tuple[int, int] | None) -> Input:
    """An int64 feature with these enforced bounds; any other feature, and without limits, unchanged.

    Raises `Refused`, naming the column, when the example holds integers outside.
    """
    if feature.dtype != "int64" or limits is None:
        return feature
    low, high = limits
    for value in (feature.minimum, feature.maximum):
        if value is not None and not low <= value <= high:
            remedy = (
                "replace the values by numbers from 0 on before training"
                if high == MAX_FLOAT32_INTEGER
                else "correct the column, or train the model with a wider input type"
            )
            raise Refused(
                f"the column {show(feature.name)} of the example holds {value:.0f}; "
                f"{describe_bounds(low, high)}; {remedy}"
            )
    return msgspec.structs.replace(feature, minimum=float(low), maximum=float(high), enforced=True)


def narrower(first: tuple[int, int] | None, second: tuple[int, int] | None) -> tuple[int, int] | None:
    """The integers within both limits; None is unlimited."""
    if first is None or second is None:
        return first or second
    return max(first[0], second[0]), min(first[1], second[1])
