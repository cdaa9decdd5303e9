"""Parsers of HTTP header values: entity tags and quality values (RFC 9110, 8.8.3 and 12.4.2)."""

from __future__ import annotations

import math
import re

_ENTITY_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def etag_matches(condition: str, etag: str, *, strong: bool = False) -> bool:
    """Return whether `condition`, a list of entity tags or `*`, contains `etag`.

    `etag` is a strong tag with its quotes. In a strong comparison a weak tag (`W/"..."`) of the list never
    matches; in a weak one, which If-None-Match requires, it does (RFC 9110, 8.8.3.2).
    """
    if condition.strip() == "*":
        return True
    return any(tag == etag and not (weak and strong) for weak, tag in _ENTITY_TAG.findall(condition))


def parse_qualities(header: str) -> list[tuple[str, float]]:
    """Parse a list such as `text/csv;q=0.5, */*` into lower-case values and their qualities, in its order.

    The quality is 1.0 by default and 0.0 (not acceptable) when it is not a number. Other parameters are
    ignored.
    """
    return [_parse_quality(item) for item in header.lower().split(",")]


def _parse_quality(item: str) -> tuple[str, float]:
    value, *parameters = (part.strip() for part in item.split(";"))
    for parameter in parameters:
        name, _, text = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = float(text)
            except ValueError:
                return value, 0.0
            return value, 0.0 if math.isnan(quality) else quality
    return value, 1.0
