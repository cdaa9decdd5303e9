"""Exit codes, and the messages that exceptions become."""

from __future__ import annotations

import sys
from typing import Any

from registry.errors import TriviumError

FAILURE, USAGE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130
MAX_LINES = 5
"""Errors listed of one response: in a file, each row may have the same one."""


def explain_exception(error: Exception) -> tuple[int, list[str]]:
    """Return exit code and message lines. Raises `error` again when it is not an expected error."""
    if isinstance(error, _imported_class("service.client", "ServerRefused")):
        hint = "set TRIVIUM_API_KEY to a valid key, or TRIVIUM_HOME to the server's data directory"
        details = _detail_lines(str(error), error.problem.get("errors") or [], error.lines())
        return FAILURE, [f"error: {error}", *details, *([hint] if error.status == 401 else [])]
    if isinstance(error, _imported_class("service.client", "Unreachable")):
        hint = "start a server with `trivium serve`, or set TRIVIUM_URL to the address of a running one"
        return UNREACHABLE, [f"error: {error}", hint]
    if isinstance(error, _imported_class("service.client", "BuilderBroken")):
        hint = "the build stays in the queue until the builder works; see the server's log"
        return FAILURE, [f"error: {error}", hint]
    if isinstance(error, _imported_class("httpx", "InvalidURL")):
        return USAGE, [f"error: {error}"]
    if isinstance(error, _imported_class("pydantic_core", "ValidationError")):  # of a setting
        return USAGE, [
            f"error: TRIVIUM_{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()
        ]
    if isinstance(error, _imported_class("sqlalchemy.exc", "DBAPIError")):
        return FAILURE, [f"error: the database does not answer: {one_line(error.orig)}"]
    if isinstance(error, TriviumError | OSError):
        return FAILURE, [f"error: {error}"]
    raise error


def _detail_lines(detail: str, errors: list[dict[str, Any]], lines: list[str]) -> list[str]:
    """The lines of a response's `errors` that `detail` does not contain; at most `MAX_LINES`."""
    single = len(errors) == 1
    new_lines = [
        line
        for error, line in zip(errors, lines, strict=True)
        if str(error.get("message")) not in detail or not (single or error.get("instance") is None)
    ]
    more = len(new_lines) - MAX_LINES
    if more > 0:
        return [*new_lines[:MAX_LINES], f"... and {more} more"]
    if not single or "; " in detail or not errors[0].get("expected"):  # the part after "; " is the remedy
        return new_lines
    return [*new_lines, f"expected: {errors[0]['expected']}"]


def one_line(error: object) -> str:
    return " ".join(str(error).split())


def _imported_class(module: str, name: str) -> Any:
    """The class, for `isinstance`, or NoneType when its module was never imported.

    An exception's module has been imported; importing the others here would slow down every failure.
    """
    return getattr(sys.modules.get(module), name, type(None))
