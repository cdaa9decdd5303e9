"""Conditional and range requests, and the choice of a content coding (RFC 9110, 12.5.3, 13 and 14).

A file has one or two representations: unencoded, and compressed with zstd. Each has its own entity tag,
derived from the file's sha256, so all replicas return the same tag, also after a restart. No representation
has a modification date, which would differ between replicas; conditions on dates are therefore ignored, as
13.1.3, 13.1.4 and 13.1.5 specify.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from service.web.header_values import etag_matches, parse_qualities
from service.web.request_context import RequestContext

ZSTD = "zstd"
_RANGE = re.compile(r"bytes=[ \t]*(?:([0-9]+)-([0-9]*)|-([0-9]+))[ \t]*", re.ASCII | re.IGNORECASE)
_MAX_DIGITS = 18
"""More digits than the size of any file has; `int` itself rejects numbers of thousands of digits."""
_IMPLICIT_IDENTITY = 1e-9  # quality of the unencoded form when Accept-Encoding does not name it


class Representation(NamedTuple):
    """A file in one content coding."""

    blob: str  # the sha256 of exactly these bytes, which names their blob
    etag: str
    coding: str | None = None  # None: unencoded


class ConditionalHeaders(NamedTuple):
    """The request headers that select the response; None for a header that is absent."""

    accept_encoding: str | None = None
    if_match: str | None = None
    if_none_match: str | None = None
    if_range: str | None = None
    range: str | None = None

    @classmethod
    def of(cls, scope: Scope) -> ConditionalHeaders:
        """Read the headers. Repeated ones are joined to one list (RFC 9110, 5.3)."""
        headers = Headers(scope=scope)
        values = {field: headers.getlist(field.replace("_", "-")) for field in cls._fields}
        return cls(**{field: ", ".join(lines) if lines else None for field, lines in values.items()})


class ByteRange(NamedTuple):
    """The bytes from `start` up to, not including, `stop`. Empty when `start` is the size of the file."""

    start: int
    stop: int


def representations(sha256: str, zstd: str | None) -> list[Representation]:
    """Return the representations of a file, in the server's order of preference.

    `zstd` is the sha256 of the compressed file, if one is stored.
    """
    identity = Representation(sha256, f'"{sha256}"')
    return [identity] if zstd is None else [Representation(zstd, f'"{sha256}-{ZSTD}"', ZSTD), identity]


def choose_representation(
    available: Sequence[Representation], headers: ConditionalHeaders
) -> Representation | None:
    """Choose a representation, or None when Accept-Encoding excludes all of them (12.5.3).

    Among the acceptable ones, one that a condition names comes first: a device that has the unencoded file
    gets a 304 for it, and a download continues in the coding in which it started, even if Accept-Encoding
    now prefers another.
    """
    qualities = [(r, _coding_quality(headers.accept_encoding, r.coding)) for r in available]
    acceptable = [(representation, quality) for representation, quality in qualities if quality > 0]
    for condition in (headers.if_match, headers.if_range, headers.if_none_match):
        if condition is None or condition.strip() == "*":
            continue
        for representation, _ in acceptable:
            if etag_matches(condition, representation.etag):
                return representation
    return max(acceptable, key=lambda pair: pair[1])[0] if acceptable else None


def precondition_status(headers: ConditionalHeaders, etag: str) -> int | None:
    """Evaluate the preconditions of a GET or HEAD: 412, 304, or None, in the order of 13.2.2."""
    if headers.if_match is not None and not etag_matches(headers.if_match, etag, strong=True):
        return 412
    if headers.if_none_match is not None and etag_matches(headers.if_none_match, etag):
        return 304
    return None


def precondition_response(scope: Scope, response_headers: Mapping[str, str]) -> Response | None:
    """Return the 304 with `response_headers`, or None when the full response must be sent.

    `response_headers` contains the ETag. Raises HTTPException 412.
    """
    etag = response_headers["ETag"]
    status = precondition_status(ConditionalHeaders.of(scope), etag)
    if status is None:
        return None
    if status == 412:
        raise HTTPException(412, f"If-Match does not match the current entity tag {etag}", {"ETag": etag})
    context: RequestContext = scope["context"]
    context.quiet = True  # devices poll, most responses are a 304, and a log line costs more than that
    return Response(status_code=status, headers=dict(response_headers))


def select_range(headers: ConditionalHeaders, etag: str, size: int) -> ByteRange | None:
    """Return the bytes that a GET requests, or None for the whole file with status 200.

    Malformed ranges, several ranges and other units are ignored, as 14.2 permits, and so is a range whose
    If-Range is not exactly `etag`. An empty range starts after the end of the file: status 416.
    """
    if headers.range is None or (headers.if_range is not None and headers.if_range.strip() != etag):
        return None
    match = _RANGE.fullmatch(headers.range.strip())
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        return ByteRange(size - min(_parse_integer(suffix), size), size)
    start = _parse_integer(first)
    stop = _parse_integer(last) + 1 if last else size
    if stop <= start and last:
        return None  # malformed: the last position is before the first
    return ByteRange(start, min(stop, size)) if start < size else ByteRange(size, size)


def _parse_integer(digits: str) -> int:
    significant = digits.lstrip("0") or "0"
    return int(significant) if len(significant) <= _MAX_DIGITS else 10**_MAX_DIGITS


def _coding_quality(accept_encoding: str | None, coding: str | None) -> float:
    """Return the quality of a content coding (None: unencoded); 0.0 means not acceptable.

    Without the header any coding would be acceptable (12.5.3), but clients that do not send it do not decode.
    """
    if accept_encoding is None:
        return float(coding is None)
    qualities = dict(parse_qualities(accept_encoding))
    if coding is not None:
        return qualities.get(coding, qualities.get("*", 0.0))
    return qualities.get("identity", qualities.get("*", _IMPLICIT_IDENTITY))
