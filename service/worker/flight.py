"""A task that a lane of a worker has claimed, for as long as it is this worker's."""

from __future__ import annotations

import threading

from sqlalchemy.orm import Session

from registry import queue
from registry.errors import NotFound, StaleTask
from registry.jobs import jobs
from registry.jobs.tables import JobRow
from registry.queue import ClaimedTask


class Stopping(Exception):
    """The worker is shutting down: what it holds goes back to the queue."""


class Flight:
    """A claimed task in a lane's hands."""

    def __init__(self, task: ClaimedTask, stopping: threading.Event) -> None:
        self.task = task
        self.rows, self.failed = 0, 0
        self.lost = False
        self._stopping = stopping

    def alive(self, rows: int, failed: int) -> None:
        """Raises `StaleTask` when the task is another's by now, `Stopping` when the worker shuts down."""
        self.rows, self.failed = rows, failed
        if self.lost:
            raise StaleTask(self.task.id)
        if self._stopping.is_set():
            raise Stopping

    @property
    def job_id(self) -> int:
        return int(self.task.subject.partition("/")[0])

    @property
    def place(self) -> tuple[str, int]:
        """Stage and number of a partition's task."""
        _, stage, number = self.task.subject.split("/")
        return stage, int(number)


def held(session: Session, flight: Flight) -> JobRow:
    """The job, locked, while the task is this flight's: else `StaleTask`, also when the job was forgotten.

    The job first, then its task, then the partition: whoever locks several does it in this order.
    """
    try:
        job = jobs.lock(session, flight.job_id)
    except NotFound as gone:
        raise StaleTask(flight.task.id) from gone
    queue.heartbeat(session, flight.task.id, flight.task.fence, queue.JOB_LEASE_S)
    return job
