from __future__ import annotations

import pytest

from service.web.header_values import etag_matches, parse_qualities


@pytest.mark.parametrize(
    ("header", "qualities"),
    [
        ("gzip", [("gzip", 1.0)]),
        ("zstd;q=0.5, IDENTITY", [("zstd", 0.5), ("identity", 1.0)]),
        (" text/csv ; charset=utf-8 ; q = 0.25 ,*/*;Q=0", [("text/csv", 0.25), ("*/*", 0.0)]),
        ("a;q=, b;q=x, c;q=nan", [("a", 0.0), ("b", 0.0), ("c", 0.0)]),
        ("a,a;q=0.1", [("a", 1.0), ("a", 0.1)]),
        ("", [("", 1.0)]),
        ("a;q=0, b;q=1, c;q=0.001, d;q=-1, e;q=2", [("a", 0), ("b", 1), ("c", 0.001), ("d", -1), ("e", 2)]),
        ("a;level=1;q=0.5;x=2", [("a", 0.5)]),
        ("a;q", [("a", 0.0)]),
        ("a;q=0.5;q=1", [("a", 0.5)]),
        (",a", [("", 1.0), ("a", 1.0)]),
    ],
)
def test_a_list_is_parsed_to_values_and_qualities_in_its_order(
    header: str, qualities: list[tuple[str, float]]
) -> None:
    assert parse_qualities(header) == qualities


@pytest.mark.parametrize(
    ("condition", "weak", "strong"),
    [
        ("*", True, True),
        (" * ", True, True),
        ('"abc"', True, True),
        ('W/"abc"', True, False),
        ('"x", "abc"', True, True),
        ('"x",W/"abc"', True, False),
        ('W/"abc", "abc"', True, True),
        ('"ab", "abcd", "ABC"', False, False),
        ("abc", False, False),
        ('"*"', False, False),
        ("", False, False),
        ('"a b c"', False, False),
        ('"x,"abc"', False, False),
    ],
)
def test_an_entity_tag_is_compared_as_a_whole(condition: str, weak: bool, strong: bool) -> None:
    assert etag_matches(condition, '"abc"') == weak
    assert etag_matches(condition, '"abc"', strong=True) == strong


@pytest.mark.parametrize("character", ["!", "#", "~", "\x80", "\xff"])
def test_every_character_that_a_tag_may_contain_is_accepted(character: str) -> None:
    assert etag_matches(f'"x", "{character}"', f'"{character}"')


@pytest.mark.parametrize("character", [" ", "\x7f", "\x1f"])
def test_other_characters_end_the_comparison(character: str) -> None:
    assert not etag_matches(f'"{character}"', f'"{character}"')
