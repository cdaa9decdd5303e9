"""Names: what the API's pattern says, to the character."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import Invalid
from registry.names import NAME_PATTERN, check_name


@pytest.mark.parametrize("name", ["a", "0", "fraud-eu_2.1", "a" * 63, "a..", "1-"])
def test_a_name_passes_unchanged(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "A", "-a", ".a", "_a", "a b", "a" * 64, "a\n", "\na", "größe", "a/b", "..", "a\0", "\uff11"]
)
def test_what_is_no_name_is_refused_by_field(name: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_name(name, "alias")
    assert caught.value.errors[0].field == "alias"


@given(st.text(max_size=70) | st.from_regex(NAME_PATTERN))
def test_the_check_and_the_published_pattern_agree(name: str) -> None:
    try:
        check_name(name)
        passes = True
    except Invalid:
        passes = False
    assert passes is bool(re.fullmatch(NAME_PATTERN.strip("^$"), name))
