"""What an exception means to somebody at a terminal: an exit code and the lines to show."""

from __future__ import annotations

import sys
from typing import Any

from registry.errors import TriviumError

REFUSED, USAGE, UNREACHABLE = 1, 2, 3
MAX_LINES = 5  # of a file, each row may have the same fault


def explain(error: Exception) -> tuple[int, list[str]]:
    """The exit code and the message of an error that people can act on; every other one is raised again."""
    if isinstance(error, _loaded("service.client", "ServerRefused")):
        key = "set TRIVIUM_API_KEY to a valid key, or TRIVIUM_HOME to the server's data directory"
        more = _unsaid(str(error), error.problem.get("errors") or [], error.lines())
        return REFUSED, [f"error: {error}", *more, *([key] if error.status == 401 else [])]
    if isinstance(error, _loaded("service.client", "Unreachable")):
        start = "start one with `trivium serve`, or set TRIVIUM_URL to where it runs"
        return UNREACHABLE, [f"error: {error}", start]
    if isinstance(error, _loaded("service.client.builder_watch", "BuilderBroken")):
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


def _unsaid(detail: str, faults: list[dict[str, Any]], lines: list[str]) -> list[str]:
    """The lines, one for each fault, that the detail does not say; of many, how many more there are."""
    single = len(faults) == 1
    left = [
        line
        for fault, line in zip(faults, lines, strict=True)
        if str(fault.get("message")) not in detail or not (single or fault.get("instance") is None)
    ]
    more = len(left) - MAX_LINES
    if more > 0:
        return [*left[:MAX_LINES], f"... and {more} more"]
    if not single or "; " in detail or not faults[0].get("expected"):  # "what is wrong; what to do"
        return left
    return [*left, f"expected: {faults[0]['expected']}"]


def one_line(error: object) -> str:
    return " ".join(str(error).split())


def _loaded(module: str, name: str) -> Any:
    """That class, for isinstance. A module that was never imported raised nothing, and importing it only
    to ask would make every failure slow."""
    return getattr(sys.modules.get(module), name, type(None))
