from __future__ import annotations

import pytest

from registry.errors import describe_error, first_line, summarize_error


def test_a_description_has_the_type_and_the_message() -> None:
    assert describe_error(ValueError("math domain error")) == "ValueError: math domain error"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n  first \nsecond"), "first"),
        (ValueError(" \n"), "ValueError"),
        (KeyError(), "KeyError"),
    ],
)
def test_the_first_line_skips_blank_lines(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_a_summary_is_cut_to_its_length() -> None:
    assert summarize_error(ValueError("x" * 400), 20) == "ValueError: xxxxx..."


def test_a_summary_of_an_error_without_message_is_its_type() -> None:
    assert summarize_error(ValueError()) == "ValueError"
