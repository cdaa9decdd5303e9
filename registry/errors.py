"""All errors that the registry and the services raise on purpose.

    TriviumError
    ├── NotFound            the model, version, alias, key, artifact, ... does not exist
    ├── Conflict            the request is valid, but not in the present state of the registry
    │   ├── InUse           deleting or archiving would break an alias, a rollback or a job
    │   ├── NotReady        the version is building, rejected or archived
    │   ├── StaleTask       another claim holds the task
    │   └── Changed         an input file changed since the job was planned
    ├── Invalid             the input is wrong; `errors` lists row, field and expected value
    │   ├── Missing         the input does not exist, or not yet
    │   └── DigestMismatch  the bytes do not have the announced sha256
    ├── TooLarge            the input exceeds a documented limit
    ├── Refused             a build rejects the uploaded model; its report contains the reason
    └── Unavailable         the model cannot answer now: its process died, or it cannot be loaded
        ├── DeadlineExceeded
        └── Overloaded      too many calls wait for the model

Errors with a fixed message build it themselves. They contain no HTTP: the table of status codes is
`service/web/problems.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class FieldError(msgspec.Struct, frozen=True):
    """One fault of an input: a sentence for users, its place, and the expected value."""

    message: str
    instance: int | None = None  # the index of the row, for inputs with rows
    field: str | None = None
    expected: str | None = None


class TriviumError(Exception):
    """Base class of all errors that the registry and the services raise on purpose."""


def describe_error(error: BaseException) -> str:
    """Return the type and the message of an error: `ValueError: math domain error`."""
    return f"{type(error).__name__}: {error}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not blank, or the name of its type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def summarize_error(error: BaseException, max_characters: int = 300) -> str:
    """Return the type and the first line of an error, cut to `max_characters`."""
    line, name = first_line(error), type(error).__name__
    text = line if line == name else f"{name}: {line}"
    return text if len(text) <= max_characters else text[: max_characters - 3] + "..."


class NotFound(TriviumError):
    def __init__(self, kind: str, name: object, hint: str = "") -> None:
        super().__init__(f"there is no {kind} {str(name)!r}{'; ' + hint if hint else ''}")


class Conflict(TriviumError):
    pass


class InUse(Conflict):
    pass


class NotReady(Conflict):
    pass


class StaleTask(Conflict):
    def __init__(self, task_id: int) -> None:
        super().__init__(f"task {task_id} is no longer held by this claim; its result is discarded")


class Changed(Conflict):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"the input file {name!r} changed since the job was planned: {reason}; start a new job"
        )


class Invalid(TriviumError):
    """The input is wrong. `errors` lists all detected faults, in the order of the input."""

    def __init__(self, message: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(message)
        self.errors = tuple(errors)


def invalid_field(
    field: str | None, message: str, expected: str | None = None, *, detail: str | None = None
) -> Invalid:
    """Build an `Invalid` about one field. `detail` is the text of the error itself, `message` by default."""
    return Invalid(detail or message, [FieldError(message, field=field, expected=expected)])


class Missing(Invalid):
    def __init__(self, message: str, field: str, expected: str | None = None) -> None:
        super().__init__(message, [FieldError(message, field=field, expected=expected)])


class DigestMismatch(Invalid):
    def __init__(self, announced: str, actual: str) -> None:
        super().__init__(
            f"the bytes have sha256 {actual}, not {announced}; they were not stored",
            [FieldError("the digest differs", field="sha256", expected=actual)],
        )


class Damaged(TriviumError):
    """A stored blob has other bytes than its name states."""

    def __init__(self, sha256: str, size: int) -> None:
        super().__init__(
            f"the stored file {sha256} is damaged: its {size} bytes have another sha256; "
            "restore it from a backup, or upload the same file again"
        )


class TooLarge(TriviumError):
    pass


class Refused(TriviumError):
    pass


class Unavailable(TriviumError):
    pass


class DeadlineExceeded(Unavailable):
    pass


class Overloaded(Unavailable):
    def __init__(self, model: str, waiting: int) -> None:
        super().__init__(
            f"the model {model} is overloaded: {waiting} calls wait for it; try again later with fewer calls "
            "at a time, or start more processes (`trivium serve --workers`)"
        )
