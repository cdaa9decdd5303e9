"""What a worker does with a job, whatever its kind: plan it, do one of its partitions, assemble them.

`Work` is what each kind of job fills in; `service/worker/lanes.py` claims the tasks, keeps their leases and
records what came of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from registry.errors import Conflict, TriviumError
from registry.jobs.jobs import NewPartition
from registry.jobs.tables import JobRow, PartitionRow
from service.config import Settings

Alive = Callable[[int, int], None]
"""Called between batches with the rows done and failed so far. Raises when nobody wants the work any more."""


class Hopeless(Conflict):
    """No further attempt can help: somebody has to do something first, and resume the job then. `errors` is
    the blob that lists the rows which failed, where that is why."""

    def __init__(self, message: str, errors: str | None = None) -> None:
        super().__init__(message)
        self.errors = errors


@dataclass(frozen=True, slots=True)
class Stage:
    """Partitions to be worked on next. `plan` replaces the job's."""

    name: str
    parts: Sequence[NewPartition]
    plan: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """A partition that was done; `result` is its line in the manifest."""

    rows: int
    failed: int
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Whole:
    """A job that was done."""

    manifest: dict[str, Any]
    output: str | None = None  # blobs
    errors: str | None = None


class Later(Exception):
    """What the task waits for is not there yet: ask again after `in_s` seconds; no attempt is counted."""

    def __init__(self, in_s: float) -> None:
        super().__init__(f"not yet; again in {in_s:g} s")
        self.in_s = in_s


class Gone(Exception):
    """What partitions made is not there any more when it is to be assembled: they have to be done again."""

    def __init__(self, places: Sequence[tuple[str, int]]) -> None:
        """`places`: stages and numbers."""
        numbers = ", ".join(str(number) for _, number in places[:5]) + ", ..." * (len(places) > 5)
        super().__init__(f"the files of {len(places)} partitions are gone or cut short ({numbers})")
        self.places = places


class Work(Protocol):
    def plan(self, job: JobRow, alive: Alive) -> Stage:
        """Freeze the input and cut it. What is raised fails the attempt."""
        ...

    def partition(self, job: JobRow, row: PartitionRow, fence: int, alive: Alive) -> Piece:
        """Do one partition. Files carry the `fence` in their name: two workers never write the same one."""
        ...

    def assemble(self, job: JobRow, pieces: Sequence[PartitionRow], alive: Alive) -> Whole | Stage:
        """All partitions are done: make the whole of them, or say what is to be done next. Raises `Gone`."""
        ...


def discard(settings: Settings, job_id: int) -> None:
    shutil.rmtree(settings.job_directory(job_id), ignore_errors=True)


def told(error: Exception) -> str:
    """What a job's record says of an error. Of the database's, without the statement, which is in the log:
    others may not see it."""
    if isinstance(error, TriviumError):
        return str(error)
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {str(cause)[:1000]}"
