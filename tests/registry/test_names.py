"""Names: the check and the pattern of the API agree."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import Invalid
from registry.names import NAME_PATTERN, check_name, clean_file_name, is_hidden_file


@pytest.mark.parametrize("name", ["a", "0", "fraud-eu_2.1", "a" * 63, "a..", "1-"])
def test_a_valid_name_is_returned_unchanged(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "A", "-a", ".a", "_a", "a b", "a" * 64, "a\n", "\na", "größe", "a/b", "..", "a\0", "\uff11"]
)
def test_an_invalid_name_is_rejected_with_its_field(name: str) -> None:
    with pytest.raises(Invalid) as raised:
        check_name(name, "alias")
    assert raised.value.errors[0].field == "alias"


@given(st.text(max_size=70) | st.from_regex(NAME_PATTERN))
def test_the_check_and_the_published_pattern_agree(name: str) -> None:
    try:
        check_name(name)
        passes = True
    except Invalid:
        passes = False
    assert passes is bool(re.fullmatch(NAME_PATTERN.strip("^$"), name))


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("orders.csv", "orders.csv"),
        ("/data/ann/orders.csv", "orders.csv"),
        ("C:\\data\\orders.csv", "orders.csv"),
        ("new\norders\x1b[31m.csv", "new?orders?[31m.csv"),
        ("y\udcff.csv", "y?.csv"),
        ("größe 1%.csv", "größe 1%.csv"),
        ("x" * 300, "x" * 255),
        ("dir/", ""),
    ],
)
def test_a_users_file_name_is_cleaned_for_messages(name: str, cleaned: str) -> None:
    assert clean_file_name(name) == cleaned


@pytest.mark.parametrize(
    ("name", "hidden"),
    [("_SUCCESS", True), (".part.crc", True), ("._x=1", True), ("_day=1", False), ("part-0.csv", False)],
)
def test_files_beside_the_data_are_hidden(name: str, hidden: bool) -> None:
    assert is_hidden_file(name) is hidden
