"""Rows out of a JSON predict body, `{"instances": [{feature: value, ...}, ...]}`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from registry.errors import FieldError, Invalid
from registry.rows import Rows
from service.runtime.codec.columns import (
    Column,
    Faults,
    Wrong,
    clean,
    kind_of,
    rows_of,
    show,
    struct_of,
)

_as_tuple = msgspec.structs.astuple
_REFUSALS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_PLACE = re.compile(r" - at `\$\.instances\[(\d+)\](?:\.(.*))?`$", re.DOTALL)

MAX_WALKED_BYTES = 8 * 2**20  # walking 64 MB of hostile JSON took 9 s and 2 GB, and holds up everybody


class JsonRows:
    """A decoder for one signature.

    The fast path is a generated msgspec type. The slow path is the definition: it reads the body again
    with the standard library, names every fault, and answers the rows when there is none (a byte order
    mark, or a feature whose name msgspec cannot take). Of a refused body above `MAX_WALKED_BYTES` only
    the first fault is named, in msgspec's words. On both paths the last of a repeated key counts, as with
    most readers of JSON (RFC 8259 leaves it open); to find it out would cost every call.
    """

    def __init__(self, columns: Sequence[Column], max_instances: int) -> None:
        self.columns = columns
        self.max_instances = max_instances
        self.names = {c.name for c in columns}
        self.numeric = all(c.dtype != "string" for c in columns)
        self.float32 = [j for j, c in enumerate(columns) if c.dtype == "float32"]
        self.closed = [j for j, c in enumerate(columns) if c.known is not None and c.dtype != "string"]
        self.decoder = self._compile()

    def _compile(self) -> msgspec.json.Decoder[Any] | None:
        instance = struct_of(self.columns)
        if instance is None:
            return None
        bound = msgspec.Meta(min_length=1, max_length=self.max_instances)
        instances = Annotated[list[instance], bound]  # type: ignore[valid-type]
        return msgspec.json.Decoder(
            msgspec.defstruct("Body", [("instances", instances)], forbid_unknown_fields=True)
        )

    def decode(self, body: bytes) -> Rows:
        try:
            rows = self._typed(body)
        except _REFUSALS as error:
            if len(body) > MAX_WALKED_BYTES:
                raise _first_fault(error, self.max_instances) from error
            rows = None
        return self.slow(body) if rows is None else rows

    def fast(self, body: bytes) -> Rows | None:
        """The rows, or None where only the slow path can say what they are."""
        try:
            return self._typed(body)
        except _REFUSALS:
            return None

    def _typed(self, body: bytes) -> Rows | None:
        if self.decoder is None:
            return None
        return self.rows(self.decoder.decode(body).instances)

    def rows(self, instances: Sequence[Any]) -> Rows | None:
        """The rows of decoded `struct_of` instances; None where a closed category is not among them."""
        tuples = list(map(_as_tuple, instances))
        if self.numeric:
            matrix = np.array(tuples, dtype=np.float64)
            if self.float32:
                matrix[:, self.float32] = matrix[:, self.float32].astype(np.float32)
            arrays = [matrix[:, j] for j in self.closed]
            rows = Rows(matrix=matrix)
        else:
            values = zip(*tuples, strict=True)
            columns = tuple(c.array(v) for c, v in zip(self.columns, values, strict=True))
            arrays = [columns[j] for j in self.closed]
            rows = Rows(columns=columns)
        known = all(self.columns[j].all_known(a) for j, a in zip(self.closed, arrays, strict=True))
        return rows if known else None

    def slow(self, body: bytes) -> Rows:
        """The rows; raises `Invalid` with up to `MAX_FAULTS` faults."""
        instances = self._instances(read_json(body))
        faults = Faults()
        values: list[list[Any]] = [[] for _ in self.columns]
        for index, instance in enumerate(instances):
            self.walk(index, instance, values, faults)
            if faults.full:
                break
        faults.raise_any()
        arrays = [c.array(v) for c, v in zip(self.columns, values, strict=True)]
        return rows_of(self.columns, arrays, len(instances))

    def _instances(self, value: object) -> list[Any]:
        usage = 'send {"instances": [{feature: value, ...}, ...]}'
        faults = Faults()
        if not isinstance(value, dict):
            faults.add(f"the body is {kind_of(value)}; {usage}", None, None, "object")
            value = {"instances": [None]}
        for name in value:
            if name != "instances":
                faults.add_unknown("is no field of this call", name, ["instances"])
        instances = value.get("instances")
        expected = f"a list of 1 to {self.max_instances} instances"
        if "instances" not in value:
            faults.add(f'"instances" is missing; {usage}', None, "instances", expected)
        elif not isinstance(instances, list):
            faults.add(f'"instances" is {kind_of(instances)}; {usage}', None, "instances", expected)
        elif not 1 <= len(instances) <= self.max_instances:
            faults.add(count_message(len(instances), self.max_instances), None, "instances", expected)
        faults.raise_any()
        return instances  # type: ignore[return-value]

    def walk(
        self, index: int, instance: object, values: list[list[Any]], faults: Faults, strict: bool = True
    ) -> None:
        """Append the instance's value to each column's, or a fault. `strict`: unknown names are faults."""
        if not isinstance(instance, dict):
            message = f"the instance is {kind_of(instance)}; send an object, {{feature: value, ...}}"
            faults.add(message, index, None, "object")
            return
        for column, into in zip(self.columns, values, strict=True):
            try:
                into.append(column.cell(_number(instance[column.name], column)))
            except KeyError:
                message = f"{show(column.name)} is missing; {column.advice}"
                faults.add(message, index, column.name, column.expected)
            except Wrong as wrong:
                faults.add(f"{show(column.name)} {wrong}", index, column.name, column.expected)
        for name in instance if strict else ():
            if name not in self.names:
                missing = [n for n in self.names if n not in instance]
                faults.add_unknown("is no feature of this model", name, missing, index)
            if faults.full:
                return


def count_message(count: int, most: int) -> str:
    if count == 0:
        return f"there are no instances; send 1 to {most}"
    return f"there are {count} instances; send at most {most} in one call, and the rest in others"


class _NotJson:
    """One of the literals NaN, Infinity and -Infinity, which JSON does not have."""

    def __init__(self, text: str) -> None:
        self.text = text


def _number(value: Any, column: Column) -> Any:
    if isinstance(value, _NotJson):
        fix = "send null" if column.nullable else f"the model takes no missing values here, {column.advice}"
        raise Wrong(f"is {value.text}, which JSON does not have; {fix}")
    return value


def _integer(text: str) -> int | float:
    # beyond every float, and beyond what int() would take
    return int(text) if len(text) < 400 else math.copysign(math.inf, -1 if text.startswith("-") else 1)


def read_json(body: bytes) -> Any:
    """The body by the standard library, NaN and infinity marked; raises `Invalid` when it is no JSON."""
    try:
        text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        raise _no_json(f"byte {error.start} is not valid UTF-8") from error
    try:
        return json.loads(text, parse_constant=_NotJson, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise _no_json(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise _no_json("it is nested too deeply") from error


def _first_fault(error: Exception, most: int) -> Invalid:
    text = clean(str(error))
    place = _PLACE.search(text)
    instance, field = (int(place[1]), place[2]) if place else (None, None)
    message = f"the body is refused: {text}"
    if text.endswith(" - at `$.instances`"):
        field = "instances"
        message += f"; send 1 to {most} instances in one call"
    return Invalid(message, [FieldError(message, instance, field)])


def _no_json(why: str) -> Invalid:
    message = f"the body cannot be read as JSON: {why}"
    return Invalid(message, [FieldError(message, expected="JSON in UTF-8")])
