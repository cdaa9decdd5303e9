"""Media types of a predict body and of its answer (RFC 9110, 12.5.1)."""

from __future__ import annotations

from functools import lru_cache

from starlette.exceptions import HTTPException
from starlette.types import Scope

from registry.media_types import ARROW, CSV, JSON
from service.web.header_values import parse_qualities

MEDIA_TYPES = (JSON, CSV, ARROW)
"""In the server's order of preference."""


def negotiate(scope: Scope) -> tuple[str, str]:
    """Return the media types of the body and of the answer; JSON without a header. Raises 415 and 406."""
    content_type, accept = JSON, ""
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value.decode("latin-1").partition(";")[0].strip().lower()
        elif name == b"accept":
            accept = f"{accept},{value.decode('latin-1')}" if accept else value.decode("latin-1")
    if content_type not in MEDIA_TYPES:
        hint = "; with curl: -H 'Content-Type: application/json'" if "form" in content_type else ""
        raise HTTPException(415, f"cannot read {content_type!r}; send one of {', '.join(MEDIA_TYPES)}{hint}")
    answer_type = acceptable_type(accept) if accept else JSON
    if answer_type is None:
        raise HTTPException(406, f"cannot answer as {accept!r}; accept one of {', '.join(MEDIA_TYPES)}")
    return content_type, answer_type


@lru_cache(maxsize=256)  # callers repeat the same header
def acceptable_type(accept: str) -> str | None:
    """Return the media type that the header `accept` prefers, or None if it excludes all.

    Among types of equal quality, the one that the header names first is preferred.
    """
    ranges = parse_qualities(accept)
    candidates = []
    for preference, media_type in enumerate(MEDIA_TYPES):
        major = media_type.partition("/")[0]
        for media_range in (media_type, f"{major}/*", "*/*"):  # the most specific range decides
            matches = [(-quality, i) for i, (name, quality) in enumerate(ranges) if name == media_range]
            if matches:
                candidates.append((*min(matches), preference))
                break
    best = min((candidate for candidate in candidates if candidate[0] < 0), default=None)
    return None if best is None else MEDIA_TYPES[best[2]]
