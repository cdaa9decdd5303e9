"""Signature of a version: its typed inputs and outputs, the contract between a model and its callers.

Its JSON form is the one of the API. This module only defines the data: `service/runtime/codec` reads rows
against a signature, and `service/compiler/signature/describe.py` infers one from an estimator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from registry.errors import FieldError, Invalid, invalid_field

DType = Literal["float64", "float32", "int64", "bool", "string"]
Task = Literal["classification", "regression", "clustering", "outlier", "transform"]
Scalar = bool | int | float | str

MAX_SAFE_INTEGER = 2**53 - 1
"""Above it, float64 cannot represent every integer (RFC 7493, 2.2)."""
MAX_FLOAT32_INTEGER = 2**24
"""Above it, float32 cannot represent every integer."""
NUMERIC_DTYPES: frozenset[str] = frozenset({"float64", "float32", "int64", "bool"})


class Input(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One feature. A signature lists them in the order in which the model takes them."""

    name: str
    dtype: DType
    nullable: bool = False
    categories: tuple[Scalar, ...] | None = None  # values that the model was fitted on
    closed: bool = False  # True: the model itself rejects values outside `categories`
    minimum: float | None = None  # in the example; a limit only if `enforced`
    maximum: float | None = None
    example: Scalar | None = None
    enforced: bool = False  # True: the model's input cannot hold integers outside `minimum` and `maximum`


def is_numeric(inputs: Sequence[Input]) -> bool:
    """Report whether rows of these features form one float64 matrix."""
    return all(i.dtype in NUMERIC_DTYPES for i in inputs)


def max_integer(feature: Input, in_matrix: bool) -> int:
    """Return the largest absolute value of an int64 feature.

    It is `MAX_SAFE_INTEGER` for features that are passed as float64: in the matrix of a numeric signature, or
    because they are nullable.
    """
    return MAX_SAFE_INTEGER if in_matrix or feature.nullable else 2**63 - 1


def integer_bounds(feature: Input, largest: int) -> tuple[int, int]:
    """Return the smallest and the largest value of an int64 feature, both included.

    `largest`: what `max_integer` returns for the feature.
    """
    low, high = (-largest, largest) if largest == MAX_SAFE_INTEGER else (-largest - 1, largest)
    if not feature.enforced:
        return low, high
    if feature.minimum is not None:
        low = max(low, math.ceil(feature.minimum))
    if feature.maximum is not None:
        high = min(high, math.floor(feature.maximum))
    return low, high


def describe_bounds(low: int, high: int) -> str:
    """Say why a model's input is limited to these integers: the type that has exactly these bounds."""
    for bits in (8, 16, 32):
        if (low, high) == (0, 2**bits - 1):
            return f"the model's input holds uint{bits}: {low} to {high}"
        if (low, high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1):
            return f"the model's input holds int{bits}: {low} to {high}"
    for dtype, largest in (("float32", MAX_FLOAT32_INTEGER), ("float64", MAX_SAFE_INTEGER)):
        if (low, high) == (-largest, largest):
            return (
                f"the model receives this feature as {dtype}, which represents integers exactly only from "
                f"{low} to {high}"
            )
    return f"the model's input holds integers from {low} to {high}"


class Output(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One output array. `shape` starts with -1, the number of rows.

    The names by task: classification `label` and, if the model has them, `probabilities`
    (multi-output: `y0.label`, `y0.probabilities`, `y1.label`, ...); regression `value` `[-1]`, or
    `values` `[-1, t]` with the targets' names in `classes`; clustering `cluster`; outlier `label`
    and `score`; transform `vector` `[-1, d]`.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    classes: tuple[Scalar, ...] | None = None  # class labels, or the targets' names


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    task: Task
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]

    @property
    def numeric(self) -> bool:
        """Whether every feature is a number or a boolean, so that rows form one float64 matrix."""
        return is_numeric(self.inputs)

    def to_json(self) -> dict[str, Any]:
        signature: dict[str, Any] = msgspec.to_builtins(self)
        for feature in signature["inputs"]:
            feature.setdefault("nullable", False)
        return signature

    @classmethod
    def from_json(cls, value: object) -> Signature:
        """Raises `Invalid` with the place of the fault if `value` is not a signature."""
        try:
            signature = msgspec.convert(value, cls)
        except msgspec.ValidationError as error:
            raise invalid_field("signature", str(error), detail=f"not a valid signature: {error}") from error
        names = [i.name for i in signature.inputs]
        if repeated := sorted({n for n in names if names.count(n) > 1}):
            raise Invalid(
                f"the signature names {', '.join(repeated)} more than once",
                [FieldError("named more than once", field=n) for n in repeated],
            )
        return signature
