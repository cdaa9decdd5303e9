"""Media types of a predict body and of its answer (RFC 9110, 12.5.1)."""

from __future__ import annotations

from functools import lru_cache

from starlette.exceptions import HTTPException

from registry.media_types import ARROW, CSV, JSON
from service.web.header_values import parse_qualities

MEDIA_TYPES = (JSON, CSV, ARROW)
"""In the server's order of preference."""


@lru_cache(maxsize=256)  # callers repeat the same headers
def negotiate(content_type_header: bytes | None, accept: bytes | None) -> tuple[str, str]:
    """Return the media types of the body and of the answer; JSON without a header. Raises 415 and 406."""
    content_type = media_type_of(content_type_header)
    if content_type not in MEDIA_TYPES:
        hint = "; with curl: -H 'Content-Type: application/json'" if "form" in content_type else ""
        raise HTTPException(415, f"cannot read {content_type!r}; send one of {', '.join(MEDIA_TYPES)}{hint}")
    answer_type = acceptable_type(accept)
    if answer_type is None:
        text = (accept or b"").decode("latin-1")
        raise HTTPException(406, f"cannot answer as {text!r}; accept one of {', '.join(MEDIA_TYPES)}")
    return content_type, answer_type


def media_type_of(content_type: bytes | None) -> str:
    """Return the media type of a Content-Type without its parameters, in lower case; JSON without one."""
    if content_type is None:
        return JSON
    return content_type.decode("latin-1").partition(";")[0].strip().lower()


def acceptable_type(accept: bytes | None, available: tuple[str, ...] = MEDIA_TYPES) -> str | None:
    """Return the media type that the header `accept` prefers, or None if it excludes all of `available`.

    Without the header, it is the first one. Among types of equal quality, the one that the header names first
    is preferred.
    """
    if not accept:
        return available[0]
    ranges = parse_qualities(accept.decode("latin-1"))
    candidates = []
    for preference, media_type in enumerate(available):
        major = media_type.partition("/")[0]
        for media_range in (media_type, f"{major}/*", "*/*"):  # the most specific range decides
            matches = [(-quality, i) for i, (name, quality) in enumerate(ranges) if name == media_range]
            if matches:
                candidates.append((*min(matches), preference))
                break
    best = min((candidate for candidate in candidates if candidate[0] < 0), default=None)
    return None if best is None else available[best[2]]
