"""The steps of `scripts/demo`, by road. What they share is here: where files go, how things are said."""

from __future__ import annotations

import os
from pathlib import Path

HOME = Path(os.environ.get("TRIVIUM_HOME") or ".trivium")
FILES = HOME / "demo"


class Failed(Exception):
    """The demo does not show what it should."""


def say(what: str, text: str) -> None:
    first, *rest = text.splitlines()
    print(f"{what:<11}{first}", *(f"{'':<11}{line}" for line in rest), sep="\n", flush=True)
