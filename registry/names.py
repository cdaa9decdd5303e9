"""What models, aliases and keys may be called, and how a library's version is written."""

from __future__ import annotations

import re

from registry.errors import invalid_field

NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,62}$"
VERSION_PATTERN = r"^[0-9]+(\.[0-9]+)+[0-9A-Za-z.+-]*$"
"""A library's version."""
_NAME = re.compile(NAME_PATTERN.removesuffix("$") + r"\Z")  # `$` would let a newline through


def check_name(value: str, field: str = "name") -> str:
    """`value`, or `Invalid` naming `field`."""
    if _NAME.match(value) is None:
        raise invalid_field(
            field,
            "not a name",
            NAME_PATTERN,
            detail=f"{field} {value!r} must be 1 to 63 of a-z 0-9 _ . - and start with a letter or digit",
        )
    return value
