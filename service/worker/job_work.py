"""Interface between the lanes and the job kinds: plan a job, run its partitions, assemble the result.

`JobWork` is the interface that each kind implements; `service/submit/job_kinds.py` is the table of the kinds.
`service/worker/lanes.py` claims tasks, calls these methods, keeps the leases and records the results.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sqlalchemy.orm import Session

from registry import db
from registry.artifacts import Store
from registry.errors import Conflict, TriviumError
from registry.jobs.jobs import NewPartition
from registry.jobs.tables import JobRow, PartitionRow
from service.builds.forkserver import ForkServer
from service.config import Settings
from service.worker.lane_models import LaneModels

ReportProgress = Callable[[int, int], None]
"""Called between batches with the numbers of rows done and failed so far.

Raises `StaleTask` if the task was cancelled or claimed by another worker, `WorkerStopping` on shutdown.
"""


class PermanentFailure(Conflict):
    """Retrying cannot help: the user has to change something, then resume the job or start a new one.

    `errors`: sha256 of the blob that lists the failed rows, if they are the reason.
    """

    def __init__(self, message: str, errors: str | None = None) -> None:
        super().__init__(message)
        self.errors = errors


class RetryLater(Exception):
    """The task waits for something else: release it and claim it again after `delay_s`. Not an attempt."""

    def __init__(self, delay_s: float) -> None:
        super().__init__(f"retry in {delay_s:g} s")
        self.delay_s = delay_s


class PartsMissing(Exception):
    """Files of finished partitions are missing at the assembly: these partitions have to run again."""

    def __init__(self, places: Sequence[tuple[str, int]]) -> None:
        """`places`: stage and number of each partition."""
        numbers = ", ".join(str(number) for _, number in places[:5]) + ", ..." * (len(places) > 5)
        super().__init__(f"the files of {len(places)} partitions are missing or truncated ({numbers})")
        self.places = places


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """The partitions to run next. `plan` replaces the plan of the job."""

    name: str
    parts: Sequence[NewPartition]
    plan: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PartitionResult:
    """A finished partition. `result` is its entry in the manifest."""

    rows: int
    failed: int
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class JobResult:
    """A finished job. `output` and `errors` are the sha256 of blobs.

    `on_done` runs in the transaction that sets the job's state to `done`, with the job locked: changes that
    a job makes elsewhere happen if and only if it ends `done`.
    """

    manifest: dict[str, Any]
    output: str | None = None
    errors: str | None = None
    on_done: Callable[[Session, JobRow], None] | None = None


class RayInput(NamedTuple):
    """Input for the actors on Ray: plain data."""

    shared: dict[str, Any]  # for all partitions
    parts: list[dict[str, Any]]  # one for each partition


RayRunner = Callable[[dict[str, Any], Path], PartitionResult]
"""Runs one entry of `RayInput.parts`. The path is the prefix for the names of the files that it writes."""


class WorkContext(NamedTuple):
    """The objects of a worker process that the job kinds use."""

    settings: Settings
    sessions: db.Sessions
    store: Store
    models: LaneModels
    fork_server: ForkServer  # starts on first use


class JobWork(Protocol):
    """The work of one job kind. The class is called with a `WorkContext`."""

    def plan(self, job: JobRow, report_progress: ReportProgress) -> PlannedStage:
        """Freeze the list of input files and split the input. An exception fails the attempt."""
        ...

    def partition(
        self, job: JobRow, row: PartitionRow, fence: int, report_progress: ReportProgress
    ) -> PartitionResult:
        """Run one partition. Its file names contain `fence`: two workers never write the same file."""
        ...

    def assemble(
        self, job: JobRow, partitions: Sequence[PartitionRow], report_progress: ReportProgress
    ) -> JobResult | PlannedStage:
        """Return the result of the finished partitions, or the next stage. Raises `PartsMissing`."""
        ...

    def ray_input(self, job: JobRow, rows: Sequence[PartitionRow]) -> RayInput:
        """Return the input for running the partitions on Ray. Raises the same errors as `partition`."""
        ...

    @staticmethod
    def on_ray(shared: dict[str, Any], fork_server: ForkServer) -> RayRunner:
        """Return the function that runs partitions in an actor. Called in the actor's process."""
        ...


def delete_job_directory(settings: Settings, job_id: int) -> None:
    shutil.rmtree(settings.job_directory(job_id), ignore_errors=True)


def describe_failure(error: Exception) -> str:
    """Return an error as text for the job's record.

    The text of a database error leaves out its SQL statement, which only the log may show.
    """
    if isinstance(error, TriviumError):
        return str(error)
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {str(cause)[:1000]}"
