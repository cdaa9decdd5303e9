"""Keyset pagination: a page token is the sort key of the last item.

Pages stay correct while rows are inserted and deleted.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import msgspec

from registry.errors import invalid_field

T = TypeVar("T")


class Page(NamedTuple, Generic[T]):
    items: list[T]
    next_token: str | None


def make_page(rows: Sequence[T], size: int, key: Callable[[T], str | int]) -> Page[T]:
    """Build a page from up to `size + 1` rows. The extra row only shows that there is a next page."""
    items = list(rows[:size])
    return Page(items, _encode_token(key(items[-1])) if len(rows) > size else None)


def decode_token(token: str | None, kind: type[T]) -> T | None:
    """Return the sort key in `token`. Raises `Invalid` if it is not a token of this list."""
    if token is None:
        return None
    try:
        key = msgspec.json.decode(base64.urlsafe_b64decode(token.encode("ascii")), type=kind)
        if isinstance(key, int) and key.bit_length() > 63:
            raise ValueError("out of the database's integer range")
        return key
    except (ValueError, msgspec.MsgspecError) as error:
        raise invalid_field(
            "page_token",
            "unknown token",
            "next_page_token of the previous page",
            detail="page_token is not a token of this list",
        ) from error


def _encode_token(key: str | int) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode("ascii")
