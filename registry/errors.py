"""Everything the registry and the services may refuse, and why.

    TriviumError
    ├── NotFound            there is no such model, version, alias, key, artifact
    ├── Conflict            the request is sound, the state of the registry forbids it
    │   ├── InUse           deleting or archiving it would break an alias or a rollback
    │   ├── NotReady        the version is building, rejected or archived
    │   ├── StaleTask       another worker holds the task by now
    │   └── Changed         an input file is not the one that the job was planned for
    ├── Invalid             the input is wrong; `errors` names instance, field and fix
    │   ├── Missing         there is no input, or not yet
    │   └── DigestMismatch  the bytes do not have the sha256 they were announced with
    ├── TooLarge            the input is above a stated bound
    ├── Refused             a build refuses the uploaded model; the reason goes into its report
    └── Unavailable         a model could not answer now (its process died, it cannot be loaded)
        └── DeadlineExceeded

Each error builds its own message. None of them knows HTTP: the one table of status codes is
`service/web/problems.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class FieldError(msgspec.Struct, frozen=True):
    """One thing wrong with an input: where, what was expected, and a sentence for people."""

    message: str
    instance: int | None = None  # the row's index, where rows are sent
    field: str | None = None
    expected: str | None = None


class TriviumError(Exception):
    """Base class of all errors that the registry and the services raise on purpose."""


def describe_error(error: BaseException) -> str:
    """Return an error as one line of text: `ValueError: math domain error`."""
    return f"{type(error).__name__}: {error}"


class NotFound(TriviumError):
    def __init__(self, what: str, name: object, hint: str = "") -> None:
        super().__init__(f"there is no {what} {str(name)!r}{'; ' + hint if hint else ''}")


class Conflict(TriviumError):
    pass


class InUse(Conflict):
    pass


class NotReady(Conflict):
    pass


class StaleTask(Conflict):
    def __init__(self, task_id: int) -> None:
        super().__init__(f"task {task_id} is held by another worker now; this result does not count")


class Changed(Conflict):
    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"the input file {name!r} changed since the job was planned: {why}; start a new job")


class Invalid(TriviumError):
    """The input is wrong. `errors` lists every fault that was found, in the order of the input."""

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
            f"the bytes have sha256 {actual}, not {announced}; nothing was kept",
            [FieldError("the digest differs", field="sha256", expected=actual)],
        )


class TooLarge(TriviumError):
    pass


class Refused(TriviumError):
    pass


class Unavailable(TriviumError):
    pass


class DeadlineExceeded(Unavailable):
    pass
