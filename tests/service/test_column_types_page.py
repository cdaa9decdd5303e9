"""docs/column-types.md shows the table of column types and the words of missing values of the code."""

from __future__ import annotations

from pathlib import Path

from registry.text_tables import MISSING_WORDS
from service.runtime.codec.arrow_types import FAMILIES

PAGE = (Path(__file__).parents[2] / "docs" / "column-types.md").read_text(encoding="utf-8")


def test_the_page_has_a_row_for_each_family_of_types() -> None:
    rows = [
        f"| {f.title} | {f'`{f.dtype}`' if f.dtype else f'refused: {f.reason}'} "
        f"| {'exact' if f.copied else 'refused'} |"
        for f in FAMILIES
    ]
    table = "\n".join(["| type | as a feature | copied |", "|---|---|---|", *rows])
    assert table in PAGE, f"update docs/column-types.md:\n{table}"


def test_the_page_lists_the_words_of_missing_values() -> None:
    words = ", ".join(f"`{word}`" for word in MISSING_WORDS[1:])
    assert f"| {words} | missing | text |" in PAGE
