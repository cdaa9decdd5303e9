"""How models and the API's paths are written."""

from __future__ import annotations

import re
from urllib.parse import quote

import msgspec

_REF = re.compile(r"(?P<name>[^:@]+)(:(?P<version>[0-9]+)|@(?P<alias>[^:@]+))?")


class ModelRef(msgspec.Struct, frozen=True):
    """A model as users write it: `name`, `name@alias` or `name:version`."""

    name: str
    version: int | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Raises `ValueError` with a message for users."""
        match = _REF.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a model; write name, name@alias or name:version")
        version = match["version"]
        return cls(match["name"], None if version is None else int(version), match["alias"])

    def __str__(self) -> str:
        version = f":{self.version}" if self.version is not None else ""
        alias = f"@{self.alias}" if self.alias else ""
        return f"{self.name}{version}{alias}"


def path(*parts: object) -> str:
    """Return `/v1/models/<name>/...` with every part quoted."""
    return "/v1/" + "/".join(quote(str(part), safe="") for part in parts)
