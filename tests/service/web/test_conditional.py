"""Conditions, ranges and content codings as tables: every request header alone, and combined."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.web.conditional import (
    ByteRange,
    ConditionalHeaders,
    choose_representation,
    precondition_status,
    representations,
    select_range,
)

SHA, COMPRESSED_SHA = "a" * 64, "b" * 64
PLAIN, ZSTD = f'"{SHA}"', f'"{SHA}-zstd"'
OTHER = '"' + "c" * 64 + '"'
REPRESENTATIONS = representations(SHA, COMPRESSED_SHA)
SIZE = 1000


def chosen_etag(headers: ConditionalHeaders) -> str | None:
    representation = choose_representation(REPRESENTATIONS, headers)
    return representation and representation.etag


def test_each_representation_has_its_own_blob_and_entity_tag() -> None:
    assert [(r.blob, r.etag, r.coding) for r in REPRESENTATIONS] == [
        (COMPRESSED_SHA, ZSTD, "zstd"),
        (SHA, PLAIN, None),
    ]
    assert [(r.blob, r.etag, r.coding) for r in representations(SHA, None)] == [(SHA, PLAIN, None)]


@pytest.mark.parametrize(
    ("accept", "tag"),
    [
        (None, PLAIN),  # curl, and other clients that do not decode
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
def test_the_representation_with_the_highest_quality_is_chosen(accept: str | None, tag: str | None) -> None:
    assert chosen_etag(ConditionalHeaders(accept_encoding=accept)) == tag


@pytest.mark.parametrize("header", ["if_match", "if_none_match", "if_range"])
@pytest.mark.parametrize(
    ("accept", "condition", "tag"),
    [
        ("zstd", PLAIN, PLAIN),  # the client has the unencoded file, although it would now prefer zstd
        ("zstd", f"{OTHER}, {PLAIN}", PLAIN),
        ("zstd", ZSTD, ZSTD),
        ("zstd", OTHER, ZSTD),
        ("zstd;q=0", ZSTD, PLAIN),  # zstd is not acceptable
        (None, ZSTD, PLAIN),
        ("zstd, identity;q=0", PLAIN, ZSTD),
        ("zstd", "*", ZSTD),
        ("zstd;q=0.5, identity", "*", PLAIN),  # it names no representation, so the quality decides
        ("zstd;q=0.5, identity", " * ", PLAIN),
    ],
)
def test_the_representation_that_a_condition_names_comes_first_if_acceptable(
    header: str, accept: str | None, condition: str, tag: str
) -> None:
    assert chosen_etag(ConditionalHeaders(accept_encoding=accept, **{header: condition})) == tag


MATCHES = [
    (PLAIN, True, True),
    (f"W/{PLAIN}", True, False),  # a weak tag never matches in a strong comparison
    ("*", True, True),
    (" * ", True, True),
    (f"{OTHER}, {PLAIN}", True, True),
    (f"{OTHER},{PLAIN},{OTHER}", True, True),
    (f'"with, comma", {PLAIN}', True, True),
    (f"W/{OTHER}, W/{PLAIN}", True, False),
    (OTHER, False, False),
    (ZSTD, False, False),
    ("", False, False),
    (SHA, False, False),  # not an entity tag: without quotes
    (f'"{SHA}', False, False),
    (PLAIN.upper(), False, False),
    ("nonsense", False, False),
]


@pytest.mark.parametrize(("condition", "weak_match", "strong_match"), MATCHES)
def test_if_none_match_compares_weakly_and_if_match_strongly(
    condition: str, weak_match: bool, strong_match: bool
) -> None:
    expected = 304 if weak_match else None
    assert precondition_status(ConditionalHeaders(if_none_match=condition), PLAIN) == expected
    expected = None if strong_match else 412
    assert precondition_status(ConditionalHeaders(if_match=condition), PLAIN) == expected


@pytest.mark.parametrize(("if_match", "_", "strong_match"), MATCHES)
@pytest.mark.parametrize(("if_none_match", "weak_match", "__"), MATCHES)
def test_if_match_is_evaluated_before_if_none_match(
    if_match: str, strong_match: bool, if_none_match: str, weak_match: bool, _: bool, __: bool
) -> None:
    expected = 412 if not strong_match else 304 if weak_match else None
    headers = ConditionalHeaders(if_match=if_match, if_none_match=if_none_match)
    assert precondition_status(headers, PLAIN) == expected


def test_without_a_precondition_the_file_is_sent() -> None:
    assert precondition_status(ConditionalHeaders(range="bytes=0-1", if_range=OTHER), PLAIN) is None


UNSATISFIABLE = ByteRange(SIZE, SIZE)  # status 416
RANGES: list[tuple[str, ByteRange | None]] = [
    ("bytes=0-0", ByteRange(0, 1)),
    ("bytes=0-499", ByteRange(0, 500)),
    ("bytes=500-999", ByteRange(500, 1000)),
    ("bytes=500-5000", ByteRange(500, 1000)),
    ("bytes=500-", ByteRange(500, 1000)),
    ("bytes=0-", ByteRange(0, 1000)),
    ("bytes=999-", ByteRange(999, 1000)),
    ("bytes=-1", ByteRange(999, 1000)),
    ("bytes=-1000", ByteRange(0, 1000)),
    ("bytes=-5000", ByteRange(0, 1000)),
    ("BYTES=1-2", ByteRange(1, 3)),
    (" bytes= 1-2 ", ByteRange(1, 3)),
    ("bytes=007-008", ByteRange(7, 9)),
    ("bytes=0-" + "9" * 5000, ByteRange(0, 1000)),
    ("bytes=-" + "9" * 5000, ByteRange(0, 1000)),
    ("bytes=998-998", ByteRange(998, 999)),
    ("bytes=998-999", ByteRange(998, 1000)),
    ("bytes=998-1000", ByteRange(998, 1000)),
    ("bytes=999-999", ByteRange(999, 1000)),
    ("bytes=-999", ByteRange(1, 1000)),
    ("bytes=-1001", ByteRange(0, 1000)),
    ("bytes=5-4", None),
    ("bytes=5-5", ByteRange(5, 6)),
    ("bytes=1000-999", None),
    ("bytes=1000-1000", UNSATISFIABLE),
    ("bytes=00000000000000000000000000000000-0", ByteRange(0, 1)),
    ("bytes=1000-", UNSATISFIABLE),
    ("bytes=1000-2000", UNSATISFIABLE),
    ("bytes=" + "9" * 5000 + "-", UNSATISFIABLE),
    ("bytes=-0", UNSATISFIABLE),
    # ignored: the whole file is sent
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


@pytest.mark.parametrize(("value", "expected"), RANGES)
def test_a_range_header_selects_bytes_or_is_ignored(value: str, expected: ByteRange | None) -> None:
    assert select_range(ConditionalHeaders(range=value), PLAIN, SIZE) == expected
    assert select_range(ConditionalHeaders(range=value, if_range=PLAIN), PLAIN, SIZE) == expected


@pytest.mark.parametrize(
    "if_range",
    [OTHER, ZSTD, f"W/{PLAIN}", SHA, "*", f"{PLAIN}, {OTHER}", "", "Wed, 21 Oct 2026 07:28:00 GMT"],
)
def test_a_range_is_ignored_unless_if_range_is_exactly_the_tag(if_range: str) -> None:
    headers = ConditionalHeaders(range="bytes=0-1", if_range=if_range)
    assert select_range(headers, PLAIN, SIZE) is None


def test_if_range_without_range_selects_the_whole_file() -> None:
    assert select_range(ConditionalHeaders(if_range=PLAIN), PLAIN, SIZE) is None


@pytest.mark.parametrize("digits", [17, 18])
def test_positions_of_up_to_18_digits_are_exact_and_longer_ones_are_behind_every_file(digits: int) -> None:
    position = 10**digits - 1
    size = 10**18
    selected = select_range(ConditionalHeaders(range=f"bytes={position}-{position}"), PLAIN, size)
    assert selected == ByteRange(position, position + 1)
    longer = select_range(ConditionalHeaders(range=f"bytes={10**18}-"), PLAIN, size)
    assert longer == ByteRange(size, size)


def test_every_range_of_an_empty_file_is_unsatisfiable() -> None:
    for value in ("bytes=0-", "bytes=0-0", "bytes=-1"):
        assert select_range(ConditionalHeaders(range=value), PLAIN, 0) == ByteRange(0, 0)


arbitrary_text = st.one_of(st.none(), st.text(st.characters(max_codepoint=255), max_size=40))
fragments = ["bytes", "=", "-", "0", "9", ",", " ", '"', "W/", SHA, "*", "q=", ";", "zstd", "identity"]
header_like_text = st.lists(st.sampled_from(fragments)).map("".join)


@given(
    st.fixed_dictionaries(dict.fromkeys(ConditionalHeaders._fields, arbitrary_text | header_like_text)),
    st.integers(0, 2000),
)
def test_arbitrary_headers_never_fail_and_ranges_stay_inside_the_file(
    fields: dict[str, Any], size: int
) -> None:
    headers = ConditionalHeaders(**fields)
    representation = choose_representation(REPRESENTATIONS, headers)
    assert precondition_status(headers, PLAIN) in (None, 304, 412)
    selected = select_range(headers, representation.etag if representation else PLAIN, size)
    assert selected is None or 0 <= selected.start <= selected.stop <= size
