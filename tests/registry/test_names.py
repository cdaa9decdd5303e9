"""Names: the check and the pattern of the API agree."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import Invalid
from registry.names import NAME_PATTERN, check_name


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
