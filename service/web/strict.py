"""The base of everything that comes in: unknown fields are refused, and so is text that cannot be kept."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from registry.errors import invalid_field


class Checked(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        """PostgreSQL's text has no NUL, and half of a surrogate pair is no UTF-8; JSON has both."""
        waiting: list[tuple[str, Any]] = [("", value)]  # a list, not recursion: JSON may nest deeply
        while waiting:
            place, found = waiting.pop()
            if isinstance(found, str) and not _is_text(found):
                raise invalid_field(
                    place or None,
                    "not text",
                    "Unicode text without NUL",
                    detail=f"{place} is not Unicode text without NUL",
                )
            if isinstance(found, dict):
                waiting += [(place, key) for key in found]
                waiting += [(f"{place}.{key}".lstrip("."), item) for key, item in found.items()]
            elif isinstance(found, list):
                waiting += [(f"{place}.{index}", item) for index, item in enumerate(found)]
        return value


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value
