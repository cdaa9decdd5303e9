"""Errors of the client.

Unreachable       no response came
ServerRefused     the response is an error
WrongBytes        a file does not have the sha256 that the server announced
BuilderBroken     a build does not start, because the server's builder does not work
"""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]
"""A JSON object of the API."""

UNAVAILABLE_STATUSES = (502, 503, 504)
"""A server that starts or ends, or the proxy in front of it."""


class Unreachable(Exception):
    """No response came from the server at `address`."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"cannot reach the server at {address}: {reason}")
        self.address = address


class ServerRefused(Exception):
    """The server answered with an error: `status` is the HTTP status, `problem` the problem document."""

    def __init__(self, status: int, problem: Record) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"status {status}"))
        self.status = status
        self.problem = problem

    def lines(self) -> list[str]:
        """Return one line per entry of `errors`: row, field and message."""
        lines = []
        for error in self.problem.get("errors") or ():
            row, field = error.get("instance"), error.get("field")
            location = [f"row {row}"] if row is not None else []
            location += [str(field)] if field is not None else []
            message = str(error.get("message"))
            lines.append(f"{', '.join(location)}: {message}" if location else message)
        return lines


class WrongBytes(OSError):
    """The bytes of a file were changed on the way or on the disk."""

    def __init__(self, name: object, sha256: str) -> None:
        super().__init__(f"{name} does not have the sha256 {sha256} that the server announced")


class BuilderBroken(Exception):
    """A build does not start, because the server's builder does not work."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the server cannot build now: {reason}")


def is_temporary(error: Exception) -> bool:
    """Return whether the server may answer the same call later."""
    if isinstance(error, Unreachable):
        return True
    return isinstance(error, ServerRefused) and error.status in UNAVAILABLE_STATUSES
