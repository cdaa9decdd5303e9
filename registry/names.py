"""Formats of names: models, aliases and keys, and the version numbers of libraries."""

from __future__ import annotations

import re

from registry.errors import invalid_field

NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,62}$"
LIBRARY_VERSION_PATTERN = r"^[0-9]+(\.[0-9]+)+[0-9A-Za-z.+-]*$"
_NAME = re.compile(NAME_PATTERN.removesuffix("$") + r"\Z")  # `$` would accept a trailing newline


def check_name(value: str, field: str = "name") -> str:
    """Return `value`. Raises `Invalid` with `field` if it is not a name."""
    if _NAME.match(value) is None:
        raise invalid_field(
            field,
            "not a name",
            NAME_PATTERN,
            detail=f"{field} {value!r} must be 1 to 63 of a-z 0-9 _ . - and start with a letter or digit",
        )
    return value
