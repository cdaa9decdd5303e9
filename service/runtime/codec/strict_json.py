"""Reads a JSON body of any form, for the protocols whose bodies have no generated decoder."""

from __future__ import annotations

import re
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

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_ITEM_MARKS = (b",", b"[", b"{")
_CONTAINERS = {dict, list, RepeatedKey}


def max_items(rows: int, features: int) -> int:
    """Return how many items `read_body` accepts for a table: each value alone in a list, and each row."""
    return rows * (2 * features + 3) + 20 * features + 1000


def read_body(body: bytes, limit: int) -> Any:
    """Return the JSON value, in which NaN and Infinity are `NonFiniteLiteral`.

    They are not JSON, but Python's encoder writes them, so clients of other servers send them. Raises
    `Invalid`: if there are more than `limit` items (64 MB of empty lists would take a minute and 1.6 GB), and
    for repeated keys, whose meaning RFC 8259 leaves open.
    """
    if len(body) > limit and _has_more_items(body, limit):
        message = "the body has more values than the rows of one call can have; send fewer rows"
        raise invalid_field(None, message, f"at most {limit} values, lists and objects")
    try:
        value = msgspec.json.decode(body)
    except FAST_DECODER_ERRORS as error:
        if len(body) > MAX_SLOW_BYTES:
            message = f"the body cannot be read as JSON: {error}; send null for NaN, or fewer rows"
            raise invalid_field(None, message, "JSON in UTF-8") from error
        value = read_json(body)
    if not JsonRows.has_keys(body, _count_keys(value)):
        _reject_repeated_key(body)
    return value


def _has_more_items(body: bytes, limit: int) -> bool:
    """Report whether the JSON has more than `limit` items, by the marks that begin or separate them.

    Marks within strings do not count. Takes time for at most `limit` strings: each is an item, too.
    """
    items = sum(map(body.count, _ITEM_MARKS))
    if items <= limit:
        return False
    for strings, string in enumerate(_STRING.finditer(body)):
        items -= sum(map(string[0].count, _ITEM_MARKS))
        if items <= limit or strings > limit:
            break
    return items > limit


def _count_keys(value: Any) -> int:
    """Count the keys of all objects in a JSON value."""
    count, pending = 0, [value] if type(value) in _CONTAINERS else []
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            count += len(item)
            item = item.values()
        if not _CONTAINERS.isdisjoint(map(type, item)):
            pending += [part for part in item if type(part) in _CONTAINERS]
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
