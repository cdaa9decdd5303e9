"""Decodes the rows of a JSON predict body, `{"instances": [{feature: value, ...}, ...]}`.

An instance may also be a list of values in the order of the features.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any

import msgspec
import numpy as np

from registry.errors import FieldError, Invalid
from registry.rows import Rows
from service.runtime.codec.columns import (
    Column,
    Faults,
    ValueRejected,
    describe_value,
    escape_surrogates,
    instance_struct,
    rows_of,
    show,
)

_as_tuple = msgspec.structs.astuple
FAST_DECODER_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_LOCATION = re.compile(r" - at `\$\.instances\[(\d+)\](?:\.(.*))?`$", re.DOTALL)

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"(\s*:)?', re.DOTALL)
"""A JSON string, with the colon after it if it is a key."""

_OF_LISTS = re.compile(rb'\s*\{\s*"instances"\s*:\s*\[\s*\[')
"""The beginning of a body whose first instance is a list."""

MAX_SLOW_BYTES = 8 * 2**20
"""Larger bodies are not decoded slowly: 64 MB of hostile JSON took 9 s and 2 GB."""


class JsonRows:
    """A decoder for one signature.

    The fast decoder is a generated msgspec type. The slow decoder is the definition: it reads the body again
    with the standard library and names every fault. It returns the rows if it finds no fault (a byte order
    mark, or a feature whose name msgspec cannot use). In a rejected body above `MAX_SLOW_BYTES` only the
    first fault is named, in msgspec's words. Both reject repeated keys, whose meaning RFC 8259 leaves open.
    """

    def __init__(self, columns: Sequence[Column], max_instances: int) -> None:
        self.columns = columns
        self.max_instances = max_instances
        self.names = {c.name for c in columns}
        self.numeric = all(c.dtype != "string" for c in columns)
        self.float32 = [j for j, c in enumerate(columns) if c.dtype == "float32"]
        self.closed = [
            j for j, c in enumerate(columns) if c.closed_categories is not None and c.dtype != "string"
        ]
        self.decoder = self._compile(as_list=False)

    @cached_property
    def list_decoder(self) -> msgspec.json.Decoder[Any] | None:
        return self._compile(as_list=True)

    def _compile(self, as_list: bool) -> msgspec.json.Decoder[Any] | None:
        instance = instance_struct(self.columns, as_list=as_list)
        if instance is None:
            return None
        bound = msgspec.Meta(min_length=1, max_length=self.max_instances)
        instances = Annotated[list[instance], bound]  # type: ignore[valid-type]
        return msgspec.json.Decoder(
            msgspec.defstruct("Body", [("instances", instances)], forbid_unknown_fields=True)
        )

    def decode(self, body: bytes) -> Rows:
        """Raises `Invalid` with up to `MAX_FAULTS` faults."""
        try:
            rows = self.decode_fast(body)
        except FAST_DECODER_ERRORS as error:
            rows = self._decode_lists(body, error)
        return self.decode_slowly(body) if rows is None else rows

    def decode_fast(self, body: bytes) -> Rows | None:
        """Return the rows, or None if only the slow decoder can read the body.

        Raises `FAST_DECODER_ERRORS` for a body that msgspec rejects.
        """
        if self.decoder is None:
            return None
        instances = self.decoder.decode(body).instances
        expected = 1 + len(instances) * len(self.columns)
        return self.rows(instances) if self.has_keys(body, expected) else None

    def _decode_lists(self, body: bytes, error: Exception) -> Rows | None:
        """Decode a body of lists, which `decode_fast` rejected with `error`, as it decodes objects."""
        if self.list_decoder is not None and _OF_LISTS.match(body):
            try:
                instances = self.list_decoder.decode(body).instances
                return self.rows(instances) if self.has_keys(body, 1) else None
            except FAST_DECODER_ERRORS as list_error:
                error = list_error
        if len(body) > MAX_SLOW_BYTES:
            raise _first_fault(error, self.max_instances) from error
        return None

    @staticmethod
    def has_keys(body: bytes, expected: int) -> bool:
        """Report whether the JSON in `body` has this number of keys. With more, a key is repeated.

        `expected` is at most that number. Counting colons takes a fifth of the decoder's time. They are more
        than the keys if a text or a name contains one; then the keys themselves are counted.
        """
        if body.count(b":") == expected:
            return True
        return sum(1 for string in _STRING.finditer(body) if string[1]) == expected

    def rows(self, instances: Sequence[Any]) -> Rows | None:
        """Convert decoded `instance_struct` instances; None if a value is not in its closed categories."""
        tuples = list(map(_as_tuple, instances))
        if self.numeric:
            matrix = np.array(tuples, dtype=np.float64)
            if self.float32:
                matrix[:, self.float32] = matrix[:, self.float32].astype(np.float32)
            rows = Rows(matrix=matrix)
        else:
            values = zip(*tuples, strict=True)
            rows = Rows(columns=tuple(c.array(v) for c, v in zip(self.columns, values, strict=True)))
        return None if self.closed and not self._in_categories(rows) else rows

    def _in_categories(self, rows: Rows) -> bool:
        """Whether all values of columns with closed categories are among them."""
        arrays = rows.columns if rows.matrix is None else rows.matrix.T
        assert arrays is not None
        return all(self.columns[j].in_categories(arrays[j]) for j in self.closed)

    def decode_slowly(self, body: bytes) -> Rows:
        """Raises `Invalid` with up to `MAX_FAULTS` faults."""
        instances = self._instances(read_json(body))
        faults = Faults()
        values: list[list[Any]] = [[] for _ in self.columns]
        for index, instance in enumerate(instances):
            if isinstance(instance, list):
                self._read_list(index, instance, values, faults)
            else:
                self.read_instance(index, instance, values, faults)
            if faults.full:
                break
        faults.raise_any()
        arrays = [c.array(v) for c, v in zip(self.columns, values, strict=True)]
        return rows_of(self.columns, arrays, len(instances))

    def _instances(self, value: object) -> list[Any]:
        usage = 'send {"instances": [{feature: value, ...}, ...]}'
        faults = Faults()
        if not isinstance(value, dict):
            faults.add(f"the body is {describe_value(value)}; {usage}", None, None, "object")
            value = {"instances": [None]}
        if isinstance(value, RepeatedKey):
            faults.add(f"{show(value.key)} is repeated; send it once", None, value.key, "each key once")
            faults.raise_any()
        for name in value:
            if name != "instances":
                faults.add_unknown("is not a field of this call", name, ["instances"])
        instances = value.get("instances")
        expected = f"a list of 1 to {self.max_instances} instances"
        if "instances" not in value:
            faults.add(f'"instances" is missing; {usage}', None, "instances", expected)
        elif not isinstance(instances, list):
            faults.add(f'"instances" is {describe_value(instances)}; {usage}', None, "instances", expected)
        elif not 1 <= len(instances) <= self.max_instances:
            faults.add(_count_message(len(instances), self.max_instances), None, "instances", expected)
        faults.raise_any()
        return instances  # type: ignore[return-value]

    def _read_list(self, index: int, instance: list[Any], values: list[list[Any]], faults: Faults) -> None:
        """Read an instance whose values are in the order of the features."""
        if len(instance) == len(self.columns):
            named = dict(zip((c.name for c in self.columns), instance, strict=True))
            self.read_instance(index, named, values, faults)
            return
        names = ", ".join(c.name for c in self.columns[:20]) + (", ..." if len(self.columns) > 20 else "")
        expected = f"{len(self.columns)} values"
        faults.add(
            f"the instance has {len(instance)} values; send {expected}: {names}", index, None, expected
        )

    def read_instance(
        self, index: int, instance: object, values: list[list[Any]], faults: Faults, strict: bool = True
    ) -> None:
        """Append the instance's value to each column's list, or add a fault.

        `strict`: unknown names are faults.
        """
        if not isinstance(instance, dict):
            message = f"the instance is {describe_value(instance)}; send an object, {{feature: value, ...}}"
            faults.add(message, index, None, "object")
            return
        if isinstance(instance, RepeatedKey):
            faults.add(
                f"{show(instance.key)} is repeated; send it once", index, instance.key, "each key once"
            )
        for column, column_values in zip(self.columns, values, strict=True):
            try:
                column_values.append(column.check(_require_finite(instance[column.name], column)))
            except KeyError:
                message = f"{show(column.name)} is missing; {column.advice}"
                faults.add(message, index, column.name, column.expected)
            except ValueRejected as error:
                faults.add(f"{show(column.name)} {error}", index, column.name, column.expected)
        for name in instance if strict else ():
            if name not in self.names:
                missing = [n for n in self.names if n not in instance]
                faults.add_unknown("is not a feature of this model", name, missing, index)
            if faults.full:
                return


def _count_message(count: int, max_instances: int) -> str:
    if count == 0:
        return f"there are no instances; send 1 to {max_instances}"
    return f"there are {count} instances; send at most {max_instances} in one call, and the rest in others"


class RepeatedKey(dict[str, Any]):
    """An object in which `key` is repeated."""

    key = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    key = repeated_key(pairs)
    if key is None:
        return dict(pairs)
    value = RepeatedKey(pairs)
    value.key = key
    return value


def repeated_key(pairs: list[tuple[str, Any]]) -> str | None:
    """Return the first repeated key of an object, or None."""
    if len(dict(pairs)) == len(pairs):
        return None
    return next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)


class NonFiniteLiteral:
    """NaN, Infinity or -Infinity, which are not JSON."""

    def __init__(self, text: str) -> None:
        self.text = text


def _require_finite(value: Any, column: Column) -> Any:
    if isinstance(value, NonFiniteLiteral):
        fix = "send null" if column.nullable else f"the model takes no missing values here, {column.advice}"
        raise ValueRejected(f"is {value.text}, which is not valid JSON; {fix}")
    return value


def _integer(text: str) -> int | float:
    # 400 digits exceed every float, and int() rejects very long texts
    return int(text) if len(text) < 400 else math.copysign(math.inf, -1 if text.startswith("-") else 1)


def read_json(body: bytes) -> Any:
    """Parse the body with the standard library, NaN, infinity and repeated keys marked. Raises `Invalid`."""
    try:
        text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_json(f"byte {error.start} is not valid UTF-8") from error
    try:
        return json.loads(
            text, parse_constant=NonFiniteLiteral, parse_int=_integer, object_pairs_hook=_object
        )
    except json.JSONDecodeError as error:
        raise _not_json(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise _not_json("it is nested too deeply") from error


def _first_fault(error: Exception, max_instances: int) -> Invalid:
    text = escape_surrogates(str(error))
    location = _LOCATION.search(text)
    instance, field = (int(location[1]), location[2]) if location else (None, None)
    message = f"the body is refused: {text}"
    if text.endswith(" - at `$.instances`"):
        field = "instances"
        message += f"; send 1 to {max_instances} instances in one call"
    return Invalid(message, [FieldError(message, instance, field)])


def _not_json(reason: str) -> Invalid:
    message = f"the body cannot be read as JSON: {reason}"
    return Invalid(message, [FieldError(message, expected="JSON in UTF-8")])
