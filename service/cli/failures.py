"""What an exception means to somebody at a terminal: an exit code and the lines to show."""

from __future__ import annotations

REFUSED, USAGE, UNREACHABLE = 1, 2, 3


def explain(error: Exception) -> tuple[int, list[str]]:
    """The exit code and the message of an error that people can act on; every other one is raised again."""
    from httpx import InvalidURL
    from pydantic import ValidationError

    from registry.errors import TriviumError
    from service.client import ServerRefused, Unreachable

    if isinstance(error, ServerRefused):
        hint = ["set TRIVIUM_API_KEY to a valid key (or TRIVIUM_HOME to the server's data directory)"]
        return REFUSED, [f"error: {error}", *error.lines(), *(hint if error.status == 401 else [])]
    if isinstance(error, Unreachable):
        return UNREACHABLE, [
            f"error: {error}",
            "start one with `trivium serve`, or set TRIVIUM_URL to where it runs",
        ]
    if isinstance(error, InvalidURL):
        return USAGE, [f"error: {error}"]
    if isinstance(error, ValidationError):  # a setting from the environment or an option
        return USAGE, [
            f"error: TRIVIUM_{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()
        ]
    if isinstance(error, TriviumError | OSError):
        return REFUSED, [f"error: {error}"]
    raise error
