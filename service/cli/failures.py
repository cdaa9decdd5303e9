"""What an exception means to somebody at a terminal: an exit code and the lines to show."""

from __future__ import annotations

import sys
from typing import Any

from registry.errors import TriviumError

REFUSED, USAGE, UNREACHABLE = 1, 2, 3


def explain(error: Exception) -> tuple[int, list[str]]:
    """The exit code and the message of an error that people can act on; every other one is raised again."""
    if isinstance(error, _loaded("service.client", "ServerRefused")):
        key = "set TRIVIUM_API_KEY to a valid key, or TRIVIUM_HOME to the server's data directory"
        return REFUSED, [f"error: {error}", *error.lines(), *([key] if error.status == 401 else [])]
    if isinstance(error, _loaded("service.client", "Unreachable")):
        start = "start one with `trivium serve`, or set TRIVIUM_URL to where it runs"
        return UNREACHABLE, [f"error: {error}", start]
    if isinstance(error, _loaded("service.patience", "BuilderBroken")):
        later = "it stays in the queue, and is built once the builder works; the server's log says more"
        return REFUSED, [f"error: {error}", later]
    if isinstance(error, _loaded("httpx", "InvalidURL")):
        return USAGE, [f"error: {error}"]
    if isinstance(error, _loaded("pydantic_core", "ValidationError")):  # of a setting
        return USAGE, [
            f"error: TRIVIUM_{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()
        ]
    if isinstance(error, _loaded("sqlalchemy.exc", "DBAPIError")):
        return REFUSED, [f"error: the database does not answer: {one_line(error.orig)}"]
    if isinstance(error, TriviumError | OSError):
        return REFUSED, [f"error: {error}"]
    raise error


def one_line(error: object) -> str:
    return " ".join(str(error).split())


def _loaded(module: str, name: str) -> Any:
    """That class, for isinstance. A module that was never imported raised nothing, and importing it only
    to ask would make every failure slow."""
    return getattr(sys.modules.get(module), name, type(None))
