"""The field types of requests at their bounds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from registry.errors import Invalid
from service.web.request_models import MAX_NUMBER, RequestBody, Sha256, Timestamp, VersionNumber


def accepts(kind: Any, value: object) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("1", True), ("2147483647", True), ("0", False), ("2147483648", False), ("-1", False), ("+1", False),
        ("1.0", False), ("1_0", False), ("\u0661", False), ("\u00b2", False), ("", False), (" 1", False),
    ],
)  # fmt: skip
def test_a_version_number_has_31_bits(text: str, accepted: bool) -> None:
    assert MAX_NUMBER == 2**31 - 1
    assert accepts(VersionNumber, text) == accepted


@pytest.mark.parametrize(("digits", "accepted"), [(63, False), (64, True), (65, False)])
def test_a_sha256_has_64_digits(digits: int, accepted: bool) -> None:
    assert accepts(Sha256, "a" * digits) == accepted
    assert not accepts(Sha256, "A" * 64)
    assert not accepts(Sha256, "a" * 64 + "\n")


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-03-03T12:00:00Z", datetime(2026, 3, 3, 12, tzinfo=UTC)),
        ("2026-03-03T12:00:00", datetime(2026, 3, 3, 12, tzinfo=UTC)),
        ("2026-03-03T12:00:00+02:00", datetime(2026, 3, 3, 10, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("0001-01-01T14:00:00+14:00", datetime(1, 1, 1, tzinfo=UTC)),
        ("0001-01-01T13:59:59+14:00", None),
        ("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("9999-12-31T23:59:59-00:01", None),
        ("5", None),
        ("-5", None),
        (5, None),
        (None, None),
    ],
)
def test_a_time_is_between_the_years_1_and_9999(text: object, time: datetime | None) -> None:
    if time is None:
        assert not accepts(Timestamp, text)
    else:
        assert TypeAdapter(Timestamp).validate_python(text) == time


class Body(RequestBody):
    x: Any = None


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("a\0", "x"),
        (["a", "b\0"], "x.1"),
        ({"k": {"deep": ["\ud800"]}}, "x.k.deep.0"),
        ({"k\0": 1}, "x"),
        ([[], [{"a": "\0"}]], "x.1.0.a"),
    ],
)
def test_text_that_cannot_be_stored_is_named_with_its_place(value: object, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        Body.model_validate({"x": value})
    assert [error.field for error in caught.value.errors] == [field]
    assert Body.model_validate({"x": ["\x01", "\uffff", {"\U0010ffff": None}]}).x


def test_very_deep_values_are_checked_without_recursion() -> None:
    value: Any = "a\0"
    for _ in range(5000):
        value = [value]
    with pytest.raises(Invalid):
        Body._check_text({"x": value})  # type: ignore[operator]
