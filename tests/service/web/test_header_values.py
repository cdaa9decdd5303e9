from __future__ import annotations

import pytest

from service.web.header_values import parse_qualities


@pytest.mark.parametrize(
    ("header", "qualities"),
    [
        ("gzip", [("gzip", 1.0)]),
        ("zstd;q=0.5, IDENTITY", [("zstd", 0.5), ("identity", 1.0)]),
        (" text/csv ; charset=utf-8 ; q = 0.25 ,*/*;Q=0", [("text/csv", 0.25), ("*/*", 0.0)]),
        ("a;q=, b;q=x, c;q=nan", [("a", 0.0), ("b", 0.0), ("c", 0.0)]),
        ("a,a;q=0.1", [("a", 1.0), ("a", 0.1)]),
        ("", [("", 1.0)]),
    ],
)
def test_a_list_is_parsed_to_values_and_qualities_in_its_order(
    header: str, qualities: list[tuple[str, float]]
) -> None:
    assert parse_qualities(header) == qualities
