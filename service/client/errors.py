"""What can go wrong between a client and its server.

Unreachable       no answer came
ServerRefused     the answer is an error
WrongBytes        a file arrived with another digest than the server said
"""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]


class Unreachable(Exception):
    """No answer came from the server. `address` is where it was looked for."""

    def __init__(self, address: str, why: str) -> None:
        super().__init__(f"cannot reach the server at {address}: {why}")
        self.address = address


class ServerRefused(Exception):
    """The server answered with an error. `problem` is its problem+json, `status` the HTTP status."""

    def __init__(self, status: int, problem: Record) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"status {status}"))
        self.status = status
        self.problem = problem

    def lines(self) -> list[str]:
        """One line for each entry of `errors`: row, field and message."""
        found = []
        for error in self.problem.get("errors") or ():
            row, field = error.get("instance"), error.get("field")
            where = [f"row {row}"] if row is not None else []
            where += [str(field)] if field is not None else []
            message = str(error.get("message"))
            found.append(f"{', '.join(where)}: {message}" if where else message)
        return found


class WrongBytes(OSError):
    """A file's bytes are not those that were announced: the disk or something on the way changed them."""

    def __init__(self, what: object, sha256: str) -> None:
        super().__init__(f"{what} does not have the sha256 {sha256} that the server announced")


AWAY = (502, 503, 504)  # a server that starts or ends, or the proxy before one


def is_away(error: Exception) -> bool:
    """Did the server fail to answer, so that it may answer the same call later?"""
    return isinstance(error, Unreachable) or (isinstance(error, ServerRefused) and error.status in AWAY)
