"""Keyset pages: a page token is the sort key of the last item, so pages stay right while rows come and go."""

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


def cut(rows: Sequence[T], size: int, key: Callable[[T], str | int]) -> Page[T]:
    """A page from up to `size + 1` rows: the one too many only says that there is a next page."""
    items = list(rows[:size])
    return Page(items, _token(key(items[-1])) if len(rows) > size else None)


def after(token: str | None, kind: type[T]) -> T | None:
    """The sort key inside `token`. Raises `Invalid` when it is none of ours."""
    if token is None:
        return None
    try:
        key = msgspec.json.decode(base64.urlsafe_b64decode(token.encode("ascii")), type=kind)
        if isinstance(key, int) and key.bit_length() > 63:
            raise ValueError("no database holds such a number")
        return key
    except (ValueError, msgspec.MsgspecError) as error:
        raise invalid_field(
            "page_token",
            "unknown token",
            "next_page_token of the page before",
            detail="page_token is not one that this list gave out",
        ) from error


def _token(key: str | int) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode("ascii")
