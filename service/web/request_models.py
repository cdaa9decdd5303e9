"""Base classes of request bodies and queries, and the field types that several route packages use."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, get_args

from fastapi import Path
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from registry.errors import invalid_field
from registry.names import NAME_PATTERN

MAX_NUMBER = 2**31 - 1
"""Largest version number and id: the columns have 32 bits."""


class RequestModel(BaseModel):
    """Rejects unknown fields, and text that the database cannot store.

    PostgreSQL's text cannot contain NUL, and a lone surrogate cannot be encoded as UTF-8. JSON permits both.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        pending: list[tuple[str, Any]] = [("", value)]  # a list, not recursion: JSON may be deeply nested
        while pending:
            path, item = pending.pop()
            if isinstance(item, str) and not _is_storable(item):
                raise invalid_field(
                    path or None,
                    "not text",
                    "Unicode text without NUL",
                    detail=f"{path} is not Unicode text without NUL",
                )
            if isinstance(item, dict):
                pending += [(path, key) for key in item]
                pending += [(f"{path}.{key}".lstrip("."), child) for key, child in item.items()]
            elif isinstance(item, list):
                pending += [(f"{path}.{index}", child) for index, child in enumerate(item)]
        return value


class RequestBody(RequestModel):
    """A JSON body: additionally, values are not converted, so "1" is not a number.

    A number without a fraction is an integer, as in JSON Schema: 90.0 is 90.
    """

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _read_integers(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        integers = {
            name: int(item)
            for name, item in value.items()
            if isinstance(item, float) and item.is_integer() and name in cls.model_fields
            if int in (types := _types_of(cls.model_fields[name].annotation)) and float not in types
        }
        return {**value, **integers}


def _types_of(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return get_args(annotation) or (annotation,)


def _is_storable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def require_digits(text: str) -> str:
    """Validate an integer in a path. Pydantic alone also accepts 1.0, 1_0 and +1."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError("not an integer from 1")
    return text


def _require_time_text(value: Any) -> Any:
    """Reject numbers, which pydantic would read as seconds since 1970."""
    if not isinstance(value, str) or "-" not in value[1:]:
        raise ValueError("not a time such as 2026-03-03T12:00:00Z")
    return value


def _to_utc(time: datetime) -> datetime:
    try:
        return time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("not between the years 1 and 9999") from error


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", examples=["9f86d081884c7d65" + "0" * 48])]
ModelName = Annotated[str, Path(description="the model's name", pattern=NAME_PATTERN)]
VersionNumber = Annotated[
    int,
    Field(ge=1, le=MAX_NUMBER),  # before the validator: otherwise the OpenAPI document does not state them
    BeforeValidator(require_digits),
    Path(description="the version's number"),
]
Timestamp = Annotated[
    datetime, BeforeValidator(_require_time_text), AfterValidator(_to_utc), Field(strict=False)
]
"""RFC 3339; a time without a zone is in UTC."""
