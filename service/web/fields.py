"""What several rooms' paths and bodies are made of."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from pydantic import BeforeValidator, ConfigDict, Field

from registry.names import NAME_PATTERN
from service.web.strict import Checked

MAX_NUMBER = 2**31 - 1


def digits(text: str) -> str:
    """For whole numbers in paths. Pydantic alone takes 1.0, 1_0 and +1 for numbers too."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError("not an integer from 1")
    return text


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", examples=["9f86d081884c7d65" + "0" * 48])]
ModelName = Annotated[str, Path(description="the model's name", pattern=NAME_PATTERN)]
Number = Annotated[
    int, BeforeValidator(digits), Path(ge=1, le=MAX_NUMBER, description="the version's number")
]


class Strict(Checked):
    """A request's body: what `Checked` refuses, and a string is no number."""

    model_config = ConfigDict(strict=True)
