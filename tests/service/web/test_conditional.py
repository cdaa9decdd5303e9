"""RFC 9110 as a table: every field that decides, alone and with the others."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.web.conditional import Asked, Part, choose, forms, part, verdict

SHA, PACKED = "a" * 64, "b" * 64
PLAIN, ZSTD = f'"{SHA}"', f'"{SHA}-zstd"'
OTHER = '"' + "c" * 64 + '"'
BOTH = forms(SHA, PACKED)
SIZE = 1000


def chosen(asked: Asked) -> str | None:
    form = choose(BOTH, asked)
    return form and form.etag


def test_a_form_is_the_blob_of_its_own_bytes_and_has_its_own_tag() -> None:
    assert [(f.blob, f.etag, f.coding) for f in BOTH] == [(PACKED, ZSTD, "zstd"), (SHA, PLAIN, None)]
    assert [(f.blob, f.etag, f.coding) for f in forms(SHA, None)] == [(SHA, PLAIN, None)]


@pytest.mark.parametrize(
    ("accept", "tag"),
    [
        (None, PLAIN),  # curl, and whoever does not decode
        ("", PLAIN),
        ("identity", PLAIN),
        ("gzip, deflate, br", PLAIN),
        ("zstd", ZSTD),
        ("ZSTD", ZSTD),
        ("gzip, deflate, br, zstd", ZSTD),
        ("zstd;q=0.1", ZSTD),
        ("zstd; q=0.5 , gzip", ZSTD),
        ("zstd;q=0", PLAIN),
        ("zstd;q=0.000", PLAIN),
        ("zstd;q=nonsense", PLAIN),
        ("zstd;q=nan", PLAIN),
        ("zstd;q=0.5, identity", PLAIN),
        ("zstd;q=0.5, identity;q=0.4", ZSTD),
        ("zstd, identity", ZSTD),
        ("*", ZSTD),
        ("*;q=0.5, zstd;q=0", PLAIN),
        ("*;q=0.5, identity", PLAIN),
        ("zstd, identity;q=0", ZSTD),
        ("zstd, *;q=0", ZSTD),
        ("identity;q=0", None),
        ("*;q=0", None),
        ("gzip, *;q=0", None),
    ],
)
def test_the_form_is_the_one_that_the_client_likes_best(accept: str | None, tag: str | None) -> None:
    assert chosen(Asked(accept_encoding=accept)) == tag


@pytest.mark.parametrize("field", ["if_match", "if_none_match", "if_range"])
@pytest.mark.parametrize(
    ("accept", "named", "tag"),
    [
        ("zstd", PLAIN, PLAIN),  # whoever has the plain file has it, however he would take it today
        ("zstd", f"{OTHER}, {PLAIN}", PLAIN),
        ("zstd", ZSTD, ZSTD),
        ("zstd", OTHER, ZSTD),
        ("zstd;q=0", ZSTD, PLAIN),  # it would not be taken
        (None, ZSTD, PLAIN),
        ("zstd, identity;q=0", PLAIN, ZSTD),
        ("zstd", "*", ZSTD),
    ],
)
def test_the_form_that_a_condition_names_comes_first_if_it_is_taken(
    field: str, accept: str | None, named: str, tag: str
) -> None:
    assert chosen(Asked(accept_encoding=accept, **{field: named})) == tag


MATCHES = [
    (PLAIN, True, True),
    (f"W/{PLAIN}", True, False),  # weak never equals strong where the bytes must be the same
    ("*", True, True),
    (" * ", True, True),
    (f"{OTHER}, {PLAIN}", True, True),
    (f"{OTHER},{PLAIN},{OTHER}", True, True),
    (f'"with, comma", {PLAIN}', True, True),
    (f"W/{OTHER}, W/{PLAIN}", True, False),
    (OTHER, False, False),
    (ZSTD, False, False),
    ("", False, False),
    (SHA, False, False),  # no quotes, no tag
    (f'"{SHA}', False, False),
    (PLAIN.upper(), False, False),
    ("nonsense", False, False),
]


@pytest.mark.parametrize(("condition", "weakly", "strongly"), MATCHES)
def test_if_none_match_compares_weakly_and_if_match_strongly(
    condition: str, weakly: bool, strongly: bool
) -> None:
    assert verdict(Asked(if_none_match=condition), PLAIN) == (304 if weakly else None)
    assert verdict(Asked(if_match=condition), PLAIN) == (None if strongly else 412)


@pytest.mark.parametrize(("if_match", "_", "held"), MATCHES)
@pytest.mark.parametrize(("if_none_match", "known", "__"), MATCHES)
def test_if_match_is_looked_at_before_if_none_match(
    if_match: str, held: bool, if_none_match: str, known: bool, _: bool, __: bool
) -> None:
    expected = 412 if not held else 304 if known else None
    assert verdict(Asked(if_match=if_match, if_none_match=if_none_match), PLAIN) == expected


def test_without_a_condition_the_file_is_sent() -> None:
    assert verdict(Asked(range="bytes=0-1", if_range=OTHER), PLAIN) is None


NOTHING = Part(SIZE, SIZE)  # 416
RANGES: list[tuple[str, Part | None]] = [
    ("bytes=0-0", Part(0, 1)),
    ("bytes=0-499", Part(0, 500)),
    ("bytes=500-999", Part(500, 1000)),
    ("bytes=500-5000", Part(500, 1000)),
    ("bytes=500-", Part(500, 1000)),
    ("bytes=0-", Part(0, 1000)),
    ("bytes=999-", Part(999, 1000)),
    ("bytes=-1", Part(999, 1000)),
    ("bytes=-1000", Part(0, 1000)),
    ("bytes=-5000", Part(0, 1000)),
    ("BYTES=1-2", Part(1, 3)),
    (" bytes= 1-2 ", Part(1, 3)),
    ("bytes=007-008", Part(7, 9)),
    ("bytes=0-" + "9" * 5000, Part(0, 1000)),
    ("bytes=-" + "9" * 5000, Part(0, 1000)),
    ("bytes=1000-", NOTHING),
    ("bytes=1000-2000", NOTHING),
    ("bytes=" + "9" * 5000 + "-", NOTHING),
    ("bytes=-0", NOTHING),
    # ignored: the whole file
    ("bytes=0-1, 5-6", None),
    ("bytes=0-1,", None),
    ("bytes=2-1", None),
    ("bytes=-", None),
    ("bytes=", None),
    ("bytes", None),
    ("", None),
    ("bytes=a-b", None),
    ("bytes=1.0-2", None),
    ("bytes=--1", None),
    ("bytes=0x0-0x1", None),
    ("bytes=\u0661-\u0662", None),
    ("items=0-1", None),
    ("bytes 0-1", None),
]


@pytest.mark.parametrize(("text", "expected"), RANGES)
def test_a_range_is_the_part_it_says_or_is_ignored(text: str, expected: Part | None) -> None:
    assert part(Asked(range=text), PLAIN, SIZE) == expected
    assert part(Asked(range=text, if_range=PLAIN), PLAIN, SIZE) == expected


@pytest.mark.parametrize(
    "if_range",
    [OTHER, ZSTD, f"W/{PLAIN}", SHA, "*", f"{PLAIN}, {OTHER}", "", "Wed, 21 Oct 2026 07:28:00 GMT"],
)
def test_a_range_counts_only_if_if_range_is_exactly_the_tag(if_range: str) -> None:
    assert part(Asked(range="bytes=0-1", if_range=if_range), PLAIN, SIZE) is None


def test_if_range_alone_asks_for_no_part() -> None:
    assert part(Asked(if_range=PLAIN), PLAIN, SIZE) is None


def test_no_part_of_an_empty_file_can_be_sent() -> None:
    for text in ("bytes=0-", "bytes=0-0", "bytes=-1"):
        assert part(Asked(range=text), PLAIN, 0) == Part(0, 0)


text = st.one_of(st.none(), st.text(st.characters(max_codepoint=255), max_size=40))
pieces = ["bytes", "=", "-", "0", "9", ",", " ", '"', "W/", SHA, "*", "q=", ";", "zstd", "identity"]
near = st.lists(st.sampled_from(pieces)).map("".join)


@given(st.fixed_dictionaries(dict.fromkeys(Asked._fields, text | near)), st.integers(0, 2000))
def test_whatever_is_sent_some_answer_comes_and_no_part_leaves_the_file(
    fields: dict[str, Any], size: int
) -> None:
    asked = Asked(**fields)
    form = choose(BOTH, asked)
    assert verdict(asked, PLAIN) in (None, 304, 412)
    found = part(asked, form.etag if form else PLAIN, size)
    assert found is None or 0 <= found.start <= found.stop <= size
