"""How models and addresses are written."""

from __future__ import annotations

import re
from urllib.parse import quote

import msgspec

_REF = re.compile(r"(?P<name>[^:@]+)(:(?P<version>[0-9]+)|@(?P<alias>[^:@]+))?")


class ModelRef(msgspec.Struct, frozen=True):
    """A model as people write it: `name`, `name@alias` or `name:version`."""

    name: str
    version: int | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Raises `ValueError` with a sentence for people."""
        found = _REF.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is not a model; write name, name@alias or name:version")
        version = found["version"]
        return cls(found["name"], None if version is None else int(version), found["alias"])

    def __str__(self) -> str:
        return (
            self.name
            + (f":{self.version}" if self.version is not None else "")
            + (f"@{self.alias}" if self.alias else "")
        )


def path(*parts: object) -> str:
    """`/v1/models/<name>/...` with every part quoted."""
    return "/v1/" + "/".join(quote(str(part), safe="") for part in parts)
