"""Which form of a file is sent, whether it is sent at all, and which part of it: RFC 9110 without the web.

A file has one or two forms: as it is, and compressed with zstd. Each has an entity tag of its own, made of
the file's sha256, so every replica and every restart says the same. There is no modification date: it would
differ between replicas, so conditions that name a date do not hold (13.1.3, 13.1.4 and 13.1.5 say so).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

ZSTD = "zstd"
_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_RANGE = re.compile(r"bytes=[ \t]*(?:([0-9]+)-([0-9]*)|-([0-9]+))[ \t]*", re.ASCII | re.IGNORECASE)
_DIGITS = 18
"""More digits than this are more bytes than any file has; int() itself refuses thousands of them."""


class Form(NamedTuple):
    """A file in one encoding."""

    blob: str  # the sha256 of exactly these bytes, and so the name of the blob that holds them
    etag: str
    coding: str | None = None


class Asked(NamedTuple):
    """The header fields that decide; None where the request has none of that name."""

    accept_encoding: str | None = None
    if_match: str | None = None
    if_none_match: str | None = None
    if_range: str | None = None
    range: str | None = None


class Part(NamedTuple):
    """Bytes from `start` up to, not including, `stop`. None of the file when `start` is its size."""

    start: int
    stop: int


def forms(sha256: str, zstd: str | None) -> list[Form]:
    """The forms of the file, the one that we like best first."""
    plain = Form(sha256, f'"{sha256}"')
    return [plain] if zstd is None else [Form(zstd, f'"{sha256}-{ZSTD}"', ZSTD), plain]


def choose(found: Sequence[Form], asked: Asked) -> Form | None:
    """The form for this client; None when it takes none of them (12.5.3).

    Of those that it takes, the one whose tag it names comes first: a device that holds the plain file is
    told that it is current, and resumes the form it has begun, also when it would take another today.
    """
    weights = [(form, _weight(asked.accept_encoding, form.coding)) for form in found]
    taken = [(form, weight) for form, weight in weights if weight > 0]
    for condition in (asked.if_match, asked.if_range, asked.if_none_match):
        for form, _ in taken:
            if condition is not None and condition.strip() != "*" and matches(condition, form.etag):
                return form
    return max(taken, key=lambda t: t[1])[0] if taken else None


def verdict(asked: Asked, etag: str) -> int | None:
    """412 or 304 when a precondition of a GET or HEAD says so, in the order of 13.2.2; else None."""
    if asked.if_match is not None and not matches(asked.if_match, etag, strong=True):
        return 412
    if asked.if_none_match is not None and matches(asked.if_none_match, etag):
        return 304
    return None


def matches(condition: str, etag: str, *, strong: bool = False) -> bool:
    """Whether a list of tags, or `*`, holds `etag`. Ours are strong; in a strong comparison a weak one of
    the client's is never equal (8.8.3.2)."""
    if condition.strip() == "*":
        return True
    return any(tag == etag and not (weak and strong) for weak, tag in _TAG.findall(condition))


def part(asked: Asked, etag: str, size: int) -> Part | None:
    """Which bytes a GET shall get; None: all of them, with 200.

    Not understood, malformed and several ranges are all ignored, as 14.2 allows, and so is a range whose
    If-Range is not exactly our tag. The part is empty when the range lies behind the end: that is 416.
    """
    if asked.range is None or (asked.if_range is not None and asked.if_range.strip() != etag):
        return None
    match = _RANGE.fullmatch(asked.range.strip())
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        return Part(size - min(_integer(suffix), size), size)
    start = _integer(first)
    stop = _integer(last) + 1 if last else size
    if stop <= start and last:
        return None  # the last byte before the first is malformed
    return Part(start, min(stop, size)) if start < size else Part(size, size)


def _integer(digits: str) -> int:
    kept = digits.lstrip("0") or "0"
    return int(kept) if len(kept) <= _DIGITS else 10**_DIGITS


def _weight(accept_encoding: str | None, coding: str | None) -> float:
    """How much the client likes `coding` (None: as it is), 0.0 when it refuses it."""
    if accept_encoding is None:
        return float(coding is None)  # it would have to take anything, but who says nothing decodes nothing
    weights = dict(map(_preference, accept_encoding.lower().split(",")))
    if coding is not None:
        return weights.get(coding, weights.get("*", 0.0))
    return weights.get("identity", weights.get("*", 1e-9))  # always taken, liked least, unless refused


def _preference(item: str) -> tuple[str, float]:
    name, *parameters = (p.strip() for p in item.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, float(value)
            except ValueError:
                return name, 0.0
    return name, 1.0
