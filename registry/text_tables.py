"""Rules for tables of text (CSV, JSON lines) that the compiler, the codec and the batch readers share."""

from __future__ import annotations

CODE_PATTERN = r"^\s*[+-]?(?:0[0-9]+|[0-9]{19,}|0[xX][0-9a-fA-F]+)\s*$"
"""Cells that look like numbers but are codes of places, articles or accounts, and therefore stay text.

Digits with a leading zero (01067), more digits than int64 holds, and hexadecimal digits."""


def other_separator(header: str) -> str | None:
    """Return the name of the separator in a CSV header without commas, or None."""
    return next((name for mark, name in ((";", "semicolons"), ("\t", "tabs")) if mark in header), None)
