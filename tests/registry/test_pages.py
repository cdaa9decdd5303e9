"""Page tokens: they continue after the last item of a page; other tokens are rejected."""

from __future__ import annotations

import base64

import pytest

from registry.errors import Invalid
from registry.pages import decode_token, make_page


@pytest.mark.parametrize("key", ["a", "größe/_-.", "", 0, 1, -3, 2**62])
def test_a_token_contains_the_last_sort_key(key: str | int) -> None:
    page = make_page([0, 1, 2], 2, lambda _: key)
    assert page.items == [0, 1]
    assert decode_token(page.next_token, type(key)) == key


@pytest.mark.parametrize("rows", [[], [1], [1, 2]])
def test_the_last_page_has_no_token(rows: list[int]) -> None:
    assert make_page(rows, 2, lambda r: r) == (rows, None)


def test_without_a_token_the_first_page_is_returned() -> None:
    assert decode_token(None, int) is None


def _token(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode()


@pytest.mark.parametrize(
    "token",
    ["", "x", "ä", "====", _token(b"'"), _token(b"1.5"), _token(b"true"), _token(b'"7"'), _token(b"9" * 30)],
)
def test_an_invalid_token_is_rejected_with_its_field(token: str) -> None:
    with pytest.raises(Invalid) as raised:
        decode_token(token, int)
    assert raised.value.errors[0].field == "page_token"


def test_a_token_of_a_list_by_number_is_invalid_for_a_list_by_name() -> None:
    with pytest.raises(Invalid):
        decode_token(_token(b"7"), str)
