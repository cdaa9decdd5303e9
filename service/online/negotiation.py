"""Which media type a predict body has, and which its answer shall have (RFC 9110, 12.5.1)."""

from __future__ import annotations

from functools import lru_cache

from starlette.exceptions import HTTPException
from starlette.types import Scope

from service.web.header_values import parse_qualities

JSON = "application/json"
CSV = "text/csv"
ARROW = "application/vnd.apache.arrow.stream"
MEDIA_TYPES = (JSON, CSV, ARROW)  # the first is what a caller gets who is content with several


def negotiate(scope: Scope) -> tuple[str, str]:
    """The body's media type and the answer's; both are JSON where nothing is said. Raises 415 and 406."""
    content_type, accept = JSON, ""
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value.decode("latin-1").partition(";")[0].strip().lower()
        elif name == b"accept":
            accept = f"{accept},{value.decode('latin-1')}" if accept else value.decode("latin-1")
    if content_type not in MEDIA_TYPES:
        hint = "; with curl: -H 'Content-Type: application/json'" if "form" in content_type else ""
        raise HTTPException(415, f"cannot read {content_type!r}; send one of {', '.join(MEDIA_TYPES)}{hint}")
    answer = accepted(accept) if accept else JSON
    if answer is None:
        raise HTTPException(406, f"cannot answer as {accept!r}; accept one of {', '.join(MEDIA_TYPES)}")
    return content_type, answer


@lru_cache(maxsize=256)  # callers say the same thing again and again
def accepted(accept: str) -> str | None:
    """What `accept` likes best of what there is; of equals, what it names first. None: nothing at all."""
    ranges = parse_qualities(accept)
    liked = []
    for index, media_type in enumerate(MEDIA_TYPES):
        major = media_type.partition("/")[0]
        for wanted in (media_type, f"{major}/*", "*/*"):  # the most specific range decides
            found = [(-quality, at) for at, (name, quality) in enumerate(ranges) if name == wanted]
            if found:
                liked.append((*min(found), index))
                break
    best = min((choice for choice in liked if choice[0] < 0), default=None)
    return None if best is None else MEDIA_TYPES[best[2]]
