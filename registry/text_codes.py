"""What in a table of text looks like a value and is none."""

from __future__ import annotations

CODE = r"^\s*[+-]?(?:0[0-9]+|[0-9]{19,}|0[xX][0-9a-fA-F]+)\s*$"
"""Digits that begin with a zero (01067), or are more than any number here holds, are a code of a place, an
article or an account, and no number; and so are hexadecimal ones, which no other reader takes for one."""


def separator(header: str) -> str | None:
    """What stands between the columns of a header in which there is no comma."""
    return next((name for mark, name in ((";", "semicolons"), ("\t", "tabs")) if mark in header), None)
