"""Reads a JSON body of any form, for the protocols whose bodies have no generated decoder."""

from __future__ import annotations

from typing import Any, NoReturn

import msgspec

from registry.errors import invalid_field
from service.runtime.codec.columns import show
from service.runtime.codec.json import (
    FAST_DECODER_ERRORS,
    MAX_SLOW_BYTES,
    JsonRows,
    RepeatedKey,
    read_json,
)


def read_body(body: bytes) -> Any:
    """Return the JSON value, in which NaN and Infinity are `NonFiniteLiteral`.

    They are not JSON, but Python's encoder writes them, so clients of other servers send them. Raises
    `Invalid`, also for repeated keys, whose meaning RFC 8259 leaves open.
    """
    try:
        value = msgspec.json.decode(body)
    except FAST_DECODER_ERRORS as error:
        if len(body) > MAX_SLOW_BYTES:
            raise invalid_field(None, f"the body cannot be read as JSON: {error}", "JSON in UTF-8") from error
        value = read_json(body)
    if not JsonRows.has_keys(body, _count_keys(value)):
        _reject_repeated_key(body)
    return value


def _count_keys(value: Any) -> int:
    """Count the keys of all objects in a JSON value."""
    count, pending = 0, [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            count += len(item)
            pending += item.values()
        elif isinstance(item, list) and not {dict, list, RepeatedKey}.isdisjoint(map(type, item)):
            pending += item
    return count


def _reject_repeated_key(body: bytes) -> NoReturn:
    """Name the repeated key, which only the standard library's decoder reports."""
    pending = [read_json(body)] if len(body) <= MAX_SLOW_BYTES else []
    while pending:
        item = pending.pop()
        if isinstance(item, RepeatedKey):
            raise invalid_field(item.key, f"{show(item.key)} is repeated; send it once", "each key once")
        if isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, list):
            pending += item
    raise invalid_field(None, "a key is repeated in the JSON; send each key once", "each key once")
