"""One feature's rule: which values it takes, and the numpy array they become.

`Column.cell` is the definition, for every format, one value at a time. What is faster (a msgspec type, a
whole column in numpy) may only accept what `cell` accepts; whatever it refuses is walked again with
`cell`, so that the answer names each fault.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from registry.errors import FieldError, Invalid
from registry.rows import Array, Rows
from registry.signature import SAFE, Input, Scalar, Signature, most

MAX_FAULTS = 100  # more than a person reads; the rest of the body is not walked
MAX_HINTS = 5  # a close match among 500 names costs milliseconds
FLOAT32_MAX = float(np.finfo(np.float32).max)
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

_TYPES: dict[str, Any] = {
    "float64": float,
    "float32": Annotated[float, Meta(ge=-FLOAT32_MAX, le=FLOAT32_MAX)],
    "bool": bool,
    "string": str,
}
_NOUNS = {
    "float64": "a number",
    "float32": "a number (float32)",
    "int64": "an integer",
    "bool": "true or false",
    "string": "a string",
}


class Wrong(ValueError):
    """A value that the column does not take; the text completes the sentence "'age' ..."."""


class Faults(list[FieldError]):
    """Faults in the order of the input, at most `MAX_FAULTS`."""

    @property
    def full(self) -> bool:
        return len(self) >= MAX_FAULTS

    def add(self, message: str, instance: int | None, field: str | None, expected: str | None = None) -> None:
        if not self.full:
            self.append(FieldError(clean(message), instance, field and clean(field), expected))

    def add_unknown(self, what: str, name: str, known: Iterable[str], instance: int | None = None) -> None:
        """The fault that `name` is not among `known`, with the closest of them if one is close."""
        candidates = list(known)[:1000] if len(self) < MAX_HINTS else []
        close = difflib.get_close_matches(name[:200], candidates, n=1)
        hint = f"did you mean {show(close[0])}?" if close else "leave it out"
        self.add(f"{show(name)} {what}; {hint}", instance, name)

    def raise_any(self) -> None:
        """Raises `Invalid` when there is a fault; its message is the first one."""
        if not self:
            return
        first = self[0]
        where = "" if first.instance is None else f"instance {first.instance}: "
        more = f" (and {'at least ' if self.full else ''}{len(self) - 1} more)" if len(self) > 1 else ""
        raise Invalid(f"{where}{first.message}{more}", self)


def columns_of(signature: Signature) -> tuple[Column, ...]:
    """A column for each input."""
    in_matrix = signature.numeric
    return tuple(Column(i, most(i, in_matrix)) for i in signature.inputs)


class Column:
    """One `Input` of the signature, compiled. `most`: how large an int64 may be."""

    def __init__(self, spec: Input, most: int = INT64_MAX) -> None:
        self.name = spec.name
        self.dtype = spec.dtype
        self.nullable = spec.nullable
        self.most, self.least = most, INT64_MIN if most == INT64_MAX else -most
        holds_nan = spec.nullable and spec.dtype in ("int64", "bool")
        self.storage = np.dtype(
            "float64" if holds_nan else "object" if spec.dtype == "string" else spec.dtype
        )
        self.known: frozenset[Scalar] | None = None
        if spec.closed and spec.categories:
            self.known = frozenset(
                c if spec.dtype == "string" else self._key(c)
                for c in spec.categories
                if isinstance(c, str) == (spec.dtype == "string")
            )
        noun = _NOUNS[spec.dtype]
        if self.known:
            shown = [show(c) for c in spec.categories or ()]
            noun = "one of " + ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")
        self.expected = f"{noun} or null" if spec.nullable else noun
        self.advice = f"send {self.expected}"
        if spec.example is not None and not self.known:
            self.advice += f", such as {show(spec.example)}"

    @property
    def type(self) -> Any:
        """The msgspec type of a JSON value; it takes what `cell` takes, but for closed numbers."""
        kind = self._int64 if self.dtype == "int64" else _TYPES[self.dtype]
        if self.known and self.dtype == "string":
            kind = Literal[tuple(sorted(self.known, key=str))]
        return kind | None if self.nullable else kind

    @property
    def _int64(self) -> Any:
        """39.0 is an integer too: JSON does not tell them apart, and many clients write it so."""
        whole = Annotated[int, Meta(ge=self.least, le=self.most)]
        return whole | Annotated[float, Meta(ge=float(self.least), lt=float(self.most + 1), multiple_of=1)]

    def cell(self, value: Any) -> Any:
        """`value` (None, bool, int, float, str; anything else is wrong) if the column takes it, else
        raises `Wrong`."""
        if value is None:
            if not self.nullable:
                raise Wrong(f"is null, and the model takes no missing values here; {self.advice}")
            return None
        if self.dtype == "string":
            self._check_string(value)
        elif self.dtype == "bool":
            if not isinstance(value, bool):
                raise Wrong(f"is {kind_of(value)}; {self.advice}")
        else:
            self._check_number(value)
        if self.known is not None and self._key(value) not in self.known:
            raise Wrong(f"is {show(value)}, which the model does not know; {self.advice}")
        return value

    def _check_string(self, value: object) -> None:
        if not isinstance(value, str):
            raise Wrong(f"is {kind_of(value)}; {self.advice}")
        if not value.isascii() and clean(value) != value:
            raise Wrong("is no valid Unicode: it holds half of a surrogate pair; send the whole character")

    def _check_number(self, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Wrong(f"is {kind_of(value)}; {self.advice}")
        try:
            size = abs(float(value))
        except OverflowError:
            size = math.inf
        if size > FLOAT32_MAX if self.dtype == "float32" else not math.isfinite(size):
            raise Wrong(f"is {show(value)}, outside the range of {self.dtype}; {self.advice}")
        if self.dtype == "int64":
            if isinstance(value, float) and not value.is_integer():
                raise Wrong(f"is {show(value)}, no whole number; {self.advice}")
            if not INT64_MIN <= value <= INT64_MAX:
                raise Wrong(f"is {show(value)}, outside the range of int64; {self.advice}")
            if not self.least <= value <= self.most:
                raise Wrong(
                    f"is {show(value)}, and beyond {SAFE} the model's float64 tells no integers apart; "
                    "publish it with a string for this feature"
                )

    def _key(self, value: Any) -> Scalar:
        """What is looked up among the closed categories: numbers as the model will see them."""
        if self.dtype == "string":
            return str(value)
        if self.dtype == "int64":
            return int(value)
        return float(np.float32(value)) if self.dtype == "float32" else float(value)

    def all_known(self, array: Array) -> bool:
        """Whether the closed categories hold every number of `array`; missing ones are NaN."""
        known = self.known
        if known is None:
            return True
        values = array if array.dtype.kind in "iu" else array.astype(np.float64)
        return all(v in known or v != v for v in values.tolist())

    def numbers(self, values: Array) -> Array | None:
        """A column of numbers (any integer or float dtype, missing = NaN) as `array` makes it; None when
        one of them needs `cell`."""
        if values.dtype.kind == "f":
            values = values.astype(np.float64, copy=False)
        finite = np.isfinite(values)
        if not finite.all():
            if not self.nullable:
                return None
            values = np.where(finite, values, np.nan)
        present = values[finite]
        if self.dtype == "float32" and (np.abs(present.astype(np.float64, copy=False)) > FLOAT32_MAX).any():
            return None
        if self.dtype == "int64" and not self._are_int64(present):
            return None
        array = self.array(values)
        return array if self.all_known(array) else None

    def _are_int64(self, values: Array) -> bool:
        if values.dtype.kind == "f":
            return bool(((values == np.floor(values)) & (np.abs(values) < float(self.most + 1))).all())
        return bool(((values <= self.most) & (values >= self.least)).all())

    def array(self, values: Sequence[Any] | Array) -> Array:
        """Checked values as the array that `registry.rows.Rows` promises; None becomes NaN in numbers."""
        return np.array(values, dtype=self.storage)


def rows_of(columns: Sequence[Column], arrays: Sequence[Array], length: int) -> Rows:
    """`arrays`, one for each column and `length` long, as `Rows`."""
    if any(c.dtype == "string" for c in columns):
        return Rows(columns=tuple(arrays))
    matrix = np.empty((length, len(columns)), dtype=np.float64)
    for j, array in enumerate(arrays):
        matrix[:, j] = array
    return Rows(matrix=matrix)


def clean(text: str) -> str:
    """`text` with lone surrogates written out, so that it can be sent as UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def show(value: object) -> str:
    """A value as JSON would write it, cut where it gets long."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    text = clean(json.dumps(value[:80] if isinstance(value, str) else value, ensure_ascii=False, default=str))
    return text if len(text) <= 60 else text[:57] + "..."


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        return f"the string {show(value)}"
    if value is None:
        return "null"
    return f"the boolean {show(value)}" if isinstance(value, bool) else f"the number {show(value)}"


def struct_of(columns: Sequence[Column], strict: bool = True) -> type[msgspec.Struct] | None:
    """A msgspec struct with one field per column, in order; None when a name holds a quote, a backslash
    or a control character, which msgspec cannot rename to. `strict`: it takes no other fields."""
    fields = [(f"f{i}", c.type) for i, c in enumerate(columns)]
    rename = {f"f{i}": c.name for i, c in enumerate(columns)}
    try:
        return msgspec.defstruct("Instance", fields, rename=rename, forbid_unknown_fields=strict, gc=False)
    except ValueError:
        return None
