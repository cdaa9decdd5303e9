"""What several rooms' paths and bodies are made of."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Path
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from registry.names import NAME_PATTERN
from service.web.strict import Checked

MAX_NUMBER = 2**31 - 1


def digits(text: str) -> str:
    """For whole numbers in paths. Pydantic alone takes 1.0, 1_0 and +1 for numbers too."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError("not an integer from 1")
    return text


def _written(value: Any) -> Any:
    """Pydantic alone takes a number for seconds since 1970."""
    if not isinstance(value, str) or "-" not in value[1:]:
        raise ValueError("not a time such as 2026-03-03T12:00:00Z")
    return value


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("not between the years 1 and 9999") from error


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", examples=["9f86d081884c7d65" + "0" * 48])]
ModelName = Annotated[str, Path(description="the model's name", pattern=NAME_PATTERN)]
Number = Annotated[
    int, BeforeValidator(digits), Path(ge=1, le=MAX_NUMBER, description="the version's number")
]
Moment = Annotated[datetime, BeforeValidator(_written), AfterValidator(_in_utc), Field(strict=False)]
"""RFC 3339; a time without a zone is in UTC."""


class Strict(Checked):
    """A request's body: what `Checked` refuses, and a string is no number."""

    model_config = ConfigDict(strict=True)
