"""Formats of names: models, aliases and keys, files of users, and the version numbers of libraries."""

from __future__ import annotations

import re

from registry.errors import invalid_field

NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,62}$"
LIBRARY_VERSION_PATTERN = r"^[0-9]+(\.[0-9]+)+[0-9A-Za-z.+-]*$"
NUMBER_PATTERN = r"^[1-9][0-9]{0,8}$"
"""Of a version number as text, as in the keys of an object."""
HEADER_NAME_PATTERN = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"
_NAME = re.compile(NAME_PATTERN.removesuffix("$") + r"\Z")  # `$` would accept a trailing newline

MAX_FILE_NAME = 255


def clean_file_name(name: str) -> str:
    """Return a user's file name for messages: without directories, control characters and surrogates.

    Empty if nothing remains.
    """
    last = re.split(r"[/\\]", name)[-1]
    text = last.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else "?" for c in text)[:MAX_FILE_NAME].strip()


def is_hidden_file(name: str) -> bool:
    """Whether a file or directory is not part of the data, as in Spark: `_SUCCESS`, `.part.crc`.

    `_day=1` is a directory of data.
    """
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


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
