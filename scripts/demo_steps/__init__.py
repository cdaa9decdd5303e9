"""The steps of `scripts/demo`, with their common directories, error and output."""

from __future__ import annotations

import os
from pathlib import Path

HOME = Path(os.environ.get("TRIVIUM_HOME") or ".trivium")
FILES = HOME / "demo"
"""The files that the demo creates."""


class Failed(Exception):
    """The demo did not get the result that it should show."""


def print_step(label: str, text: str) -> None:
    """Print `text` with `label` in a column before its first line."""
    first, *rest = text.splitlines()
    print(f"{label:<11}{first}", *(f"{'':<11}{line}" for line in rest), sep="\n", flush=True)
