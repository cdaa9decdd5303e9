"""A version's typed inputs and outputs: the contract between a model and everybody who calls it.

The JSON form is what the API shows and takes. Only data lives here; reading rows against a
signature is `service/runtime/codec`, inferring one from an estimator is
`service/compiler/signature/estimator.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from registry.errors import FieldError, Invalid, invalid_field

DType = Literal["float64", "float32", "int64", "bool", "string"]
Task = Literal["classification", "regression", "clustering", "outlier", "transform"]
Scalar = bool | int | float | str

SAFE = 2**53 - 1
"""Beyond it float64 does not tell an integer from its neighbours (RFC 7493, 2.2)."""
NUMERIC: frozenset[str] = frozenset({"float64", "float32", "int64", "bool"})


class Input(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One feature, in the order the model takes them."""

    name: str
    dtype: DType
    nullable: bool = False
    categories: tuple[Scalar, ...] | None = None  # the values the model knows
    closed: bool = False  # True: the model itself refuses a value outside `categories`
    minimum: float | None = None  # what was seen in the example; refuses nothing
    maximum: float | None = None
    example: Scalar | None = None


def numeric(inputs: Sequence[Input]) -> bool:
    """Whether rows of these features form one float64 matrix."""
    return all(i.dtype in NUMERIC for i in inputs)


def most(given: Input, in_matrix: bool) -> int:
    """How large an int64 of this feature may be, and as small: `SAFE` where it travels as float64, in the
    matrix of a `numeric` signature, or because it may be missing."""
    return SAFE if in_matrix or given.nullable else 2**63 - 1


class Output(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One output array. `shape` starts with -1, the number of rows.

    The names by task: classification `label` and, where the model has them, `probabilities`
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
        """True when every feature is a number or a boolean, so that rows form one float64 matrix."""
        return numeric(self.inputs)

    def to_json(self) -> dict[str, Any]:
        built: dict[str, Any] = msgspec.to_builtins(self)
        for given in built["inputs"]:
            given.setdefault("nullable", False)
        return built

    @classmethod
    def from_json(cls, value: object) -> Signature:
        """Raises `Invalid`, naming the place, when `value` is not a signature."""
        try:
            signature = msgspec.convert(value, cls)
        except msgspec.ValidationError as error:
            raise invalid_field("signature", str(error), detail=f"this is no signature: {error}") from error
        names = [i.name for i in signature.inputs]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise Invalid(
                f"the signature names {', '.join(twice)} more than once",
                [FieldError("named more than once", field=n) for n in twice],
            )
        return signature
