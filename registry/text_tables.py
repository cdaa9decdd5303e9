"""Rules for tables of text (CSV, JSON lines) that the compiler, the codec and the batch readers share."""

from __future__ import annotations

import re

CODE_PATTERN = r"^\s*[+-]?(?:0[0-9]+|[0-9]{19,}|0[xX][0-9a-fA-F]+)\s*$"
"""Cells that look like numbers but are codes of places, articles or accounts, and therefore stay text.

Digits with a leading zero (01067), more digits than int64 holds, and hexadecimal digits."""


MISSING_WORDS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "#N/A")
"""Cells of a CSV that are missing values in a column of numbers or booleans, spaces around them aside.

In a column of text only the empty cell can be missing: NA is also Namibia, and None an answer.
"""
_NAN = re.compile(r"[+-]?nan", re.IGNORECASE)


def is_missing(text: str) -> bool:
    """Report whether a cell of a column of numbers or booleans is missing. NaN may have a sign."""
    text = text.strip()
    return text in MISSING_WORDS or _NAN.fullmatch(text) is not None


def other_separator(header: str) -> str | None:
    """Return the name of the separator in a CSV header without commas, or None."""
    return next((name for mark, name in ((";", "semicolons"), ("\t", "tabs")) if mark in header), None)
