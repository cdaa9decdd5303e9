"""The rule of one feature: which values it accepts, and the numpy array they become.

`Column.check` is the definition for every format, one value at a time. The faster ways (a msgspec type, a
whole column in numpy) accept only what `check` accepts. Whatever they reject is read again with `check`, so
that the answer names each fault.
"""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from registry.errors import FieldError, Invalid
from registry.rows import Array, Rows
from registry.signature import (
    MAX_SAFE_INTEGER,
    Input,
    Scalar,
    Signature,
    describe_bounds,
    integer_bounds,
    max_integer,
)
from registry.text_tables import other_separator

MAX_FAULTS = 100  # more than a person reads; the rest of the body is not checked
MAX_HINTS = 5  # finding a close match among 500 names takes milliseconds
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


class ValueRejected(ValueError):
    """A value that the column does not accept; the text completes the sentence "'age' ..."."""


class Faults(list[FieldError]):
    """Faults in the order of the input, at most `MAX_FAULTS`."""

    @property
    def full(self) -> bool:
        return len(self) >= MAX_FAULTS

    def add(self, message: str, instance: int | None, field: str | None, expected: str | None = None) -> None:
        if not self.full:
            field = field and escape_surrogates(field)
            self.append(FieldError(escape_surrogates(message), instance, field, expected))

    def add_unknown(
        self, predicate: str, name: str, candidates: Iterable[str], instance: int | None = None
    ) -> None:
        """Add the fault that `name` is unknown, with the closest of the `candidates` if one is close.

        `predicate` completes the sentence that begins with the name.
        """
        names = list(candidates)[:1000] if len(self) < MAX_HINTS else []
        close = difflib.get_close_matches(name[:200], names, n=1)
        hint = f"did you mean {show(close[0])}?" if close else "leave it out"
        self.add(f"{show(name)} {predicate}; {hint}", instance, name)

    def raise_any(self) -> None:
        """Raises `Invalid` if there is a fault."""
        if self:
            raise self.to_error()

    def to_error(self) -> Invalid:
        """Return the error of at least one fault; its message is the first one."""
        first = self[0]
        where = "" if first.instance is None else f"instance {first.instance}: "
        more = f" (and {'at least ' if self.full else ''}{len(self) - 1} more)" if len(self) > 1 else ""
        return Invalid(f"{where}{first.message}{more}", self)


def columns_of(signature: Signature) -> tuple[Column, ...]:
    """One column for each input."""
    in_matrix = signature.numeric
    return tuple(Column(i, max_integer(i, in_matrix)) for i in signature.inputs)


class Column:
    """One `Input` of the signature, compiled. `max_int` is what `max_integer` returns for it."""

    def __init__(self, spec: Input, max_int: int = INT64_MAX) -> None:
        self.name = spec.name
        self.dtype = spec.dtype
        self.nullable = spec.nullable
        self.min_int, self.max_int = integer_bounds(spec, max_int)
        self.enforced = spec.enforced
        # Whether the model distinguishes the empty text from a missing value, which CSV cannot.
        self.distinguishes_empty = spec.nullable and "" in (spec.categories or ())
        holds_nan = spec.nullable and spec.dtype in ("int64", "bool")
        self.storage = np.dtype(
            "float64" if holds_nan else "object" if spec.dtype == "string" else spec.dtype
        )
        self.closed_categories: frozenset[Scalar] | None = None  # None: every value of the dtype
        if spec.closed and spec.categories:
            self.closed_categories = frozenset(
                c if spec.dtype == "string" else self._category_key(c)
                for c in spec.categories
                if isinstance(c, str) == (spec.dtype == "string")
            )
        noun = _NOUNS[spec.dtype]
        if self.closed_categories:
            examples = [show(c) for c in spec.categories or ()]
            noun = "one of " + ", ".join(examples[:20]) + (", ..." if len(examples) > 20 else "")
        self.expected = f"{noun} or null" if spec.nullable else noun
        self.advice = f"send {self.expected}"
        if spec.example is not None and not self.closed_categories:
            self.advice += f", such as {show(spec.example)}"

    @property
    def type(self) -> Any:
        """The msgspec type of a JSON value.

        It accepts what `check` accepts. Numbers outside closed categories are rejected only by `check`.
        """
        kind = self._int64 if self.dtype == "int64" else _TYPES[self.dtype]
        if self.closed_categories and self.dtype == "string":
            kind = Literal[tuple(sorted(self.closed_categories, key=str))]
        return kind | None if self.nullable else kind

    @property
    def _int64(self) -> Any:
        """39.0 is an integer too: JSON does not distinguish them, and many clients send it."""
        integer = Annotated[int, Meta(ge=self.min_int, le=self.max_int)]
        bounds = Meta(ge=float(self.min_int), lt=float(self.max_int + 1), multiple_of=1)
        return integer | Annotated[float, bounds]

    def check(self, value: Any) -> Any:
        """Return `value` if the column accepts it, else raise `ValueRejected`.

        Accepts None, bool, int, float and str, as the dtype allows; rejects every other type.
        """
        if value is None:
            if not self.nullable:
                raise ValueRejected(f"is null, and the model takes no missing values here; {self.advice}")
            return None
        if self.dtype == "string":
            self._check_string(value)
        elif self.dtype == "bool":
            if not isinstance(value, bool):
                raise ValueRejected(f"is {describe_value(value)}; {self.advice}")
        else:
            self._check_number(value)
        if self.closed_categories is not None and self._category_key(value) not in self.closed_categories:
            raise ValueRejected(f"is {show(value)}, which is not a category of the model; {self.advice}")
        return value

    def _check_string(self, value: object) -> None:
        if not isinstance(value, str):
            raise ValueRejected(f"is {describe_value(value)}; {self.advice}")
        if not value.isascii() and escape_surrogates(value) != value:
            raise ValueRejected(
                "is not valid Unicode: it holds half of a surrogate pair; send the whole character"
            )

    def _check_number(self, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueRejected(f"is {describe_value(value)}; {self.advice}")
        try:
            size = abs(float(value))
        except OverflowError:
            size = math.inf
        if size > FLOAT32_MAX if self.dtype == "float32" else not math.isfinite(size):
            raise ValueRejected(f"is {show(value)}, outside the range of {self.dtype}; {self.advice}")
        if self.dtype == "int64":
            if isinstance(value, float) and not value.is_integer():
                raise ValueRejected(f"is {show(value)}, not a whole number; {self.advice}")
            if self.enforced and not self.min_int <= value <= self.max_int:
                reason = describe_bounds(self.min_int, self.max_int)
                raise ValueRejected(f"is {show(value)}; {reason}; {self.advice}")
            if not INT64_MIN <= value <= INT64_MAX:
                raise ValueRejected(f"is {show(value)}, outside the range of int64; {self.advice}")
            if not self.min_int <= value <= self.max_int:
                raise ValueRejected(
                    f"is {show(value)}; beyond {MAX_SAFE_INTEGER} the model's float64 cannot distinguish "
                    "neighbouring integers; publish the model with a string for this feature"
                )

    def _category_key(self, value: Any) -> Scalar:
        """The value that is looked up among the closed categories: a number as the model receives it."""
        if self.dtype == "string":
            return str(value)
        if self.dtype == "int64":
            return int(value)
        return float(np.float32(value)) if self.dtype == "float32" else float(value)

    def in_categories(self, array: Array) -> bool:
        """Whether the closed categories contain every number of `array`, missing ones (NaN) aside."""
        categories = self.closed_categories
        if categories is None:
            return True
        values = array if array.dtype.kind in "iu" else array.astype(np.float64)
        return all(v in categories or v != v for v in values.tolist())

    def numbers(self, values: Array) -> Array | None:
        """Convert a column of numbers (any integer or float dtype, missing: NaN) as `array` does.

        None if a value must be read with `check`.
        """
        if values.dtype.kind == "f":
            values = values.astype(np.float64, copy=False)
        finite = np.isfinite(values)
        if not finite.all():
            if not self.nullable or np.isinf(values).any():
                return None
            values = np.where(finite, values, np.nan)
        present = values[finite]
        if self.dtype == "float32" and (np.abs(present.astype(np.float64, copy=False)) > FLOAT32_MAX).any():
            return None
        if self.dtype == "int64" and not self._are_int64(present):
            return None
        array = self.array(values)
        return array if self.in_categories(array) else None

    def _are_int64(self, values: Array) -> bool:
        if values.dtype.kind == "f":
            in_bounds = (values >= float(self.min_int)) & (values < float(self.max_int + 1))
            return bool((in_bounds & (values == np.floor(values))).all())
        return bool(((values <= self.max_int) & (values >= self.min_int)).all())

    def array(self, values: Sequence[Any] | Array) -> Array:
        """Convert checked values to the array that `registry.rows.Rows` requires; None becomes NaN."""
        return np.array(values, dtype=self.storage)


def rows_of(columns: Sequence[Column], arrays: Sequence[Array], length: int) -> Rows:
    """Combine `arrays`, one of `length` values for each column, to `Rows`."""
    if any(c.dtype == "string" for c in columns):
        return Rows(columns=tuple(arrays))
    matrix = np.empty((length, len(columns)), dtype=np.float64)
    for j, array in enumerate(arrays):
        matrix[:, j] = array
    return Rows(matrix=matrix)


def check_names(names: Sequence[str], columns: Sequence[Column], faults: Faults) -> None:
    """Add a fault for each column that is repeated, missing, or not a feature."""
    features, present = {c.name for c in columns}, set(names)
    if len(names) == 1 and len(features) > 1 and (separator := other_separator(names[0])):
        message = f"the header {show(names[0])} seems to be separated by {separator}; use commas"
        faults.add(message, None, names[0])
        return
    for name, count in Counter(names).items():
        if count > 1:
            faults.add(f"column {show(name)} occurs {count} times; send it once", None, name)
        if name not in features:
            faults.add_unknown("is not a feature of this model", name, features - present)
    for column in columns:
        if column.name not in present:
            message = f"column {show(column.name)} is missing; {column.advice}"
            faults.add(message, None, column.name, column.expected)


def read_column(
    column: Column, values: Sequence[Any], read: Callable[[Any, Column], Any], faults: Faults
) -> Array | None:
    """Convert a column value by value with `Column.check`; None if a fault was added."""
    checked = []
    for index, value in enumerate(values):
        try:
            checked.append(column.check(read(value, column)))
        except ValueRejected as error:
            faults.add(f"{show(column.name)} {error}", index, column.name, column.expected)
            if faults.full:
                break
    return column.array(checked) if len(checked) == len(values) else None


def rows_or_raise(
    columns: Sequence[Column], arrays: Sequence[Array | None], length: int, faults: Faults
) -> Rows:
    """Combine the arrays to `Rows`. Raises `Invalid`, with the faults in the order of the rows, if any."""
    faults.sort(key=lambda f: -1 if f.instance is None else f.instance)
    faults.raise_any()
    return rows_of(columns, [a for a in arrays if a is not None], length)


def escape_surrogates(text: str) -> str:
    """Write lone surrogates as escapes, so that the text can be sent as UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def show(value: object) -> str:
    """A value as JSON, shortened if it is long."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    shortened = value[:80] if isinstance(value, str) else value
    text = escape_surrogates(json.dumps(shortened, ensure_ascii=False, default=str))
    return text if len(text) <= 60 else text[:57] + "..."


def describe_value(value: object) -> str:
    """The type of a JSON value in words, and a scalar's value."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        return f"the string {show(value)}"
    if value is None:
        return "null"
    return f"the boolean {show(value)}" if isinstance(value, bool) else f"the number {show(value)}"


def instance_struct(
    columns: Sequence[Column], strict: bool = True, as_list: bool = False
) -> type[msgspec.Struct] | None:
    """Define a msgspec struct with one field per column, in order. `strict` forbids other fields.

    `as_list`: it is a JSON list instead of an object. None if a name holds a quote, a backslash or a control
    character, which msgspec cannot rename a field to.
    """
    fields = [(f"f{i}", c.type) for i, c in enumerate(columns)]
    rename = {} if as_list else {f"f{i}": c.name for i, c in enumerate(columns)}
    try:
        return msgspec.defstruct(
            "Instance", fields, rename=rename, forbid_unknown_fields=strict, array_like=as_list, gc=False
        )
    except ValueError:
        return None
