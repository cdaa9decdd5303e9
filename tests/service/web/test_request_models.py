from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError

from service.web.request_models import RequestBody


class Share(RequestBody):
    percent: Annotated[int | None, Field(ge=0, le=100)] = None
    count: int = 0
    seconds: float = 0.0
    either: int | float | str = 0


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [("percent", 90.0, 90), ("count", -0.0, 0), ("count", 2.0**60, 2**60), ("percent", None, None)],
)
def test_a_number_without_a_fraction_is_an_integer(field: str, value: Any, read: int | None) -> None:
    result = getattr(Share.model_validate({field: value}), field)
    assert (result, type(result)) == (read, type(read))


def test_other_fields_keep_their_floats() -> None:
    body = Share.model_validate({"seconds": 2.0, "either": 3.0})
    assert (type(body.seconds), type(body.either)) == (float, float)


@pytest.mark.parametrize(
    "body",
    [
        {"percent": 90.5},
        {"percent": 101.0},
        {"percent": "90"},
        {"percent": True},
        {"count": 1e400},
        {"count": float("nan")},
        {"unknown": 1.0},
        {"count": None},
    ],
    ids=str,
)
def test_other_values_are_rejected(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Share.model_validate(body)
