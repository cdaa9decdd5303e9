"""How far the answers of one version agree with those of another one to the same rows.

A row agrees if all its labels are equal: `label`, `cluster`, and any other output that is not a float. For
models without such outputs, it agrees if all its numbers are within `TOLERANCE`, as in the comparison of a
build (`compiler/measure/parity.py`): relative to the larger one.

The difference of a row is the largest one of its numbers: absolute for probabilities, otherwise relative to
the larger of both numbers. A number that is missing or infinite on one side only differs by 1.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from registry.errors import Invalid
from registry.rows import Array, Outputs
from registry.signature import Signature

TOLERANCE = 1e-6


class Agreement(NamedTuple):
    rows: int
    agreed: int
    difference_sum: float
    largest_difference: float


def other_columns(signature: Signature, other: Signature) -> set[str]:
    """Return the outputs whose columns stand for other classes or targets in `other`, or in another order."""
    classes = {output.name: output.classes for output in other.outputs if len(output.shape) > 1}
    return {o.name for o in signature.outputs if o.name in classes and o.classes != classes[o.name]}


def compare(
    expected: Sequence[Outputs], actual: Sequence[Outputs], incomparable: Collection[str] = ()
) -> Agreement:
    """Compare the answers to the same calls. Raises `Invalid` if they have other outputs.

    The numbers of the outputs `incomparable` are not compared.
    """
    first, second = _joined(expected), _joined(actual)
    labels = [name for name in first if _is_label(name, first[name])]
    if first.keys() != second.keys():
        raise Invalid(f"the outputs are {_names(second)}, those of the version are {_names(first)}")
    rows = len(next(iter(first.values())))
    agrees, differences = np.ones(rows, dtype=np.bool_), np.zeros(rows)
    for name, array in first.items():
        other = second[name]
        if name in labels:
            agrees &= _equal(array, other)
        elif array.shape == other.shape and name not in incomparable:  # other classes: only labels count
            difference = _differences(name, array, other)
            differences = np.maximum(differences, difference)
            if not labels:
                agrees &= difference <= TOLERANCE
        elif not labels:
            if array.shape == other.shape:
                raise Invalid(f"the columns of {name} are other ones than those of the version")
            raise Invalid(
                f"{name} has the shape {other.shape[1:]}, that of the version has {array.shape[1:]}"
            )
    largest = float(differences.max(initial=0.0))
    return Agreement(rows, int(agrees.sum()), float(differences.sum()), largest)


def _joined(outputs: Sequence[Outputs]) -> Outputs:
    if len(outputs) == 1:
        return outputs[0]
    return {name: np.concatenate([o[name] for o in outputs]) for name in outputs[0]}


def _is_label(name: str, array: Array) -> bool:
    return array.dtype.kind != "f" or name.rpartition(".")[2] == "label"


def _equal(array: Array, other: Array) -> Array:
    same = (array == other) | ((array != array) & (other != other))
    agrees: Array = np.all(same.reshape(len(array), -1), axis=1)
    return agrees


def _differences(name: str, array: Array, other: Array) -> Array:
    """Return the largest difference of each row's numbers."""
    array, other = (a.astype(np.float64).reshape(len(a), -1) for a in (array, other))
    same = (array == other) | (np.isnan(array) & np.isnan(other))
    with np.errstate(all="ignore"):
        is_probability = name.rpartition(".")[2] == "probabilities"
        size = 1.0 if is_probability else np.maximum(np.abs(array), np.abs(other))
        difference = np.where(same, 0.0, np.abs(array - other) / size)
    difference[~np.isfinite(difference)] = 1.0
    largest: Array = difference.max(axis=1, initial=0.0)
    return largest


def _names(outputs: Outputs) -> str:
    return ", ".join(outputs)
