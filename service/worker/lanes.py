"""The worker's lanes: threads that claim tasks of jobs, run them and record the results.

Lanes are threads because their work releases the GIL. One more thread extends the leases. If a worker dies,
its leases expire and other workers claim its tasks. If a worker was suspended until its leases expired, the
fences of its claims are outdated, and the registry rejects its results.

A task passes through four methods: `Worker.step` claims it, `Worker._run` handles its errors,
`Worker._execute` calls the job kind, `Worker._finish` records the result.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
from sqlalchemy.exc import InternalError, OperationalError
from sqlalchemy.orm import Session

from registry import db, queue
from registry.errors import Changed, NotFound, StaleTask, TriviumError
from registry.jobs import jobs
from registry.jobs.tables import JobRow, PartitionRow
from registry.queue import ClaimedTask
from registry.tables import now
from registry.vocabulary import ASSEMBLE_TASK, JOB_TASKS, PARTITION_TASK, PLAN_TASK, RAY_TASK
from service import telemetry
from service.config import Settings
from service.worker.job_work import (
    JobResult,
    JobWork,
    PartitionResult,
    PartsMissing,
    PermanentFailure,
    PlannedStage,
    RetryLater,
    delete_job_directory,
    describe_failure,
)

HEARTBEAT_S = queue.JOB_LEASE_S / 5
POLL_S = 0.1
ERROR_PAUSE_S = 2.0
"""Pause after an error of the database."""
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0
LANE_TASKS = (PLAN_TASK, PARTITION_TASK, ASSEMBLE_TASK)

log = telemetry.logger(__name__)


class WorkerStopping(Exception):
    """The worker is shutting down: its tasks go back to the queue."""


class RunningTask:
    """A claimed task while a lane runs it."""

    def __init__(self, task: ClaimedTask, stopping: threading.Event) -> None:
        self.task = task
        self.rows, self.failed = 0, 0
        self.is_stale = False
        self._stopping = stopping

    def report_progress(self, rows: int, failed: int) -> None:
        """Store the numbers of rows done and failed so far.

        Raises `StaleTask` if the claim is outdated, `WorkerStopping` if the worker shuts down.
        """
        self.rows, self.failed = rows, failed
        if self.is_stale:
            raise StaleTask(self.task.id)
        if self._stopping.is_set():
            raise WorkerStopping

    @property
    def job_id(self) -> int:
        return int(self.task.subject.partition("/")[0])

    @property
    def place(self) -> tuple[str, int]:
        """Stage and number of the partition."""
        _, stage, number = self.task.subject.split("/")
        return stage, int(number)


def lock_job(session: Session, running: RunningTask) -> JobRow:
    """Lock and return the task's job. Raises `StaleTask` if the claim is not valid or the job was deleted.

    The order of locks is: job, task, partition. A different order could deadlock.
    """
    try:
        job = jobs.lock(session, running.job_id)
    except NotFound as error:
        raise StaleTask(running.task.id) from error
    queue.heartbeat(session, running.task.id, running.task.fence, queue.JOB_LEASE_S)
    return job


class Worker:
    """Lanes that run the tasks of jobs.

    `works`: by job kind. `run_on_ray` runs and finishes a task of kind `RAY_TASK`; it has a lane of its own,
    which mostly waits. `nice`: process priority of the lanes; the thread that extends the leases keeps the
    normal priority.
    """

    def __init__(
        self,
        settings: Settings,
        sessions: db.Sessions,
        works: Mapping[str, JobWork],
        run_on_ray: Callable[[JobRow, RunningTask], None] | None = None,
        nice: int = 0,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._works = works
        self._run_on_ray = run_on_ray
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._stopping, self._stopped = threading.Event(), threading.Event()
        self._claiming = threading.Lock()  # one lane at a time looks for a task
        self._finished = threading.Event()  # a task was finished: its successor may be claimable
        self._running: set[RunningTask] = set()
        self._lanes = [
            threading.Thread(target=self._loop, args=(self.step, nice), name=f"lane {n}", daemon=True)
            for n in range(settings.batch_lanes)
        ]
        if run_on_ray is not None:
            lane = threading.Thread(target=self._loop, args=(self.ray_step,), name="Ray lane", daemon=True)
            self._lanes.append(lane)
        self._leases = threading.Thread(target=self._extend_leases, name="leases", daemon=True)

    def start(self) -> None:
        for thread in (*self._lanes, self._leases):
            thread.start()

    def stop(self, grace_s: float) -> None:
        """Release unfinished tasks. A lane that does not end within `grace_s` is left: its lease expires."""
        self._stopping.set()
        self._finished.set()
        deadline = time.monotonic() + grace_s
        for thread in self._lanes:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        self._stopped.set()
        if self._leases.ident is not None:
            self._leases.join()

    def step(self) -> None:
        """Run one task, or wait for a moment if none is available."""
        with self._claiming:
            self._finished.clear()
            running = self._claim(LANE_TASKS)
            if running is None:
                self._finished.wait(POLL_S)
                return
        self._run(running)
        self._finished.set()

    def ray_step(self) -> None:
        """Run one task on Ray, or wait for a moment if none is available."""
        running = self._claim((RAY_TASK,))
        if running is None:
            self._stopping.wait(POLL_S)
        else:
            self._run(running)

    def heartbeat(self) -> None:
        """Extend the leases of all running tasks and record their progress."""
        for running in list(self._running):
            task = running.task
            try:
                with self._sessions.begin() as session:
                    queue.heartbeat(session, task.id, task.fence, queue.JOB_LEASE_S)
                    if task.kind == PARTITION_TASK:
                        row = jobs.partition(session, running.job_id, *running.place)
                        if row.result is None:
                            row.rows, row.failed = running.rows, running.failed
            except (StaleTask, NotFound):
                running.is_stale = True
            except Exception:  # most likely of the database: the next heartbeat may be in time
                log.exception("worker.heartbeat_failed")

    def _claim(self, kinds: Sequence[str]) -> RunningTask | None:
        if self._stopping.is_set():
            return None
        max_per_model = self._settings.batch_lanes_per_model
        with db.reading(self._sessions) as session:  # polling must not take the write lock
            if not queue.has_claimable(session, kinds, max_per_model):
                return None
        with self._sessions.begin() as session:
            _fail_lost_task(session)
            task = queue.claim(session, kinds, self._name, queue.JOB_LEASE_S, max_per_key=max_per_model)
        if task is None:
            return None
        running = RunningTask(task, self._stopping)
        self._running.add(running)
        return running

    def _run(self, running: RunningTask) -> None:
        """Execute a task. An error retries, releases or fails it."""
        try:
            try:
                self._execute(running)
            except Exception as error:
                self._handle_error(running, error)
        except StaleTask as error:  # cancelled, deleted, or finished by another worker
            log.info("task.dropped", task=running.task.id, subject=running.task.subject, reason=str(error))
            self._delete_late_files(running.job_id)
        finally:
            self._running.discard(running)

    def _execute(self, running: RunningTask) -> None:
        job, row = self._begin(running)
        work, task = self._works[job.kind], running.task
        result: PlannedStage | PartitionResult | JobResult
        if task.kind == RAY_TASK:
            assert self._run_on_ray is not None, "workers without Ray do not claim such tasks"
            self._run_on_ray(job, running)
            return
        if task.kind == PLAN_TASK:
            result = work.plan(job, running.report_progress)
        elif row is not None:
            result = work.partition(job, row, task.fence, running.report_progress)
        else:
            with db.reading(self._sessions) as session:
                partitions = jobs.partitions(session, job.id)
            result = work.assemble(job, partitions, running.report_progress)
        self._finish(running, result)

    def _begin(self, running: RunningTask) -> tuple[JobRow, PartitionRow | None]:
        """Mark the task as started; return its job and its partition, if it has one. Both are detached."""
        with self._sessions.begin() as session:
            job = lock_job(session, running)
            if job.state == jobs.QUEUED:
                job.state, job.started_at = jobs.RUNNING, job.started_at or now()
            row = None
            if running.task.kind == PARTITION_TASK:
                row = jobs.partition(session, job.id, *running.place)
                row.worker, row.started_at, row.rows, row.failed = self._name, now(), 0, 0
        return job, row

    def _finish(self, running: RunningTask, result: PlannedStage | PartitionResult | JobResult) -> None:
        with self._sessions.begin() as session:
            job = lock_job(session, running)
            queue.finish(session, running.task.id, running.task.fence)
            if isinstance(result, PartitionResult):
                row = jobs.partition(session, job.id, *running.place)
                jobs.finish_partition(
                    session, job, row, rows=result.rows, failed=result.failed, result=result.result
                )
            elif isinstance(result, PlannedStage):
                job.plan = result.plan
                jobs.add_partitions(session, job, result.name, result.parts)
            else:
                job.output, job.errors, job.manifest = result.output, result.errors, result.manifest
                if result.on_done is not None:
                    result.on_done(session, job)
                jobs.end(session, job, jobs.DONE)
        if job.state == jobs.DONE:
            delete_job_directory(self._settings, job.id)
            log.info("job.done", job=job.id, kind=job.kind, model=job.model)

    def _handle_error(self, running: RunningTask, error: Exception) -> None:
        """Release, repeat or fail the task. Raises `StaleTask` if the claim is outdated."""
        task = running.task
        if isinstance(error, StaleTask):
            raise error
        if isinstance(error, RetryLater):
            self._release(task, error.delay_s)
        elif isinstance(error, PartsMissing):
            self._redo_partitions(running, error)
        elif isinstance(error, WorkerStopping):
            self._release(task, 0.0)
        elif isinstance(error, OperationalError | InternalError):  # of the database: not a failed attempt
            log.warning("task.released", task=task.id, subject=task.subject, reason=str(error.orig))
            self._release(task, ERROR_PAUSE_S)
        elif self._stopping.is_set():  # the shutdown may have closed something that the task used
            self._release(task, 0.0)
        else:
            if not isinstance(error, TriviumError | OSError):
                log.error("task.failed", task=task.id, kind=task.kind, subject=task.subject, exc_info=error)
            self._fail(running, error)

    def _release(self, task: ClaimedTask, delay_s: float) -> None:
        with self._sessions.begin() as session:
            queue.release(session, task.id, task.fence, delay_s)

    def _fail(self, running: RunningTask, error: Exception) -> None:
        """Retry the task after a pause, or fail the job if no attempt is left or none can succeed."""
        task = running.task
        if isinstance(error, msgspec.ValidationError):  # of the plan: the only data that is decoded here
            message = f"another release planned this job ({str(error)[:200]}): start a new job"
            error = PermanentFailure(message)
        reason = describe_failure(error)
        log.warning("task.failed", task=task.id, kind=task.kind, subject=task.subject, reason=reason)
        with self._sessions.begin() as session:
            job = lock_job(session, running)
            failures = _count_failure(session, running)
            is_final = isinstance(error, PermanentFailure | Changed) or failures >= job.max_attempts
            backoff_s = min(FIRST_BACKOFF_S * 2 ** (failures - 1), MAX_BACKOFF_S)
            will_retry = queue.fail(session, task.id, task.fence, reason, None if is_final else backoff_s)
            if not will_retry:
                is_permanent = isinstance(error, PermanentFailure)
                job.errors = error.errors if isinstance(error, PermanentFailure) else None
                concerns_job = task.kind == PLAN_TASK or (is_permanent and task.kind == ASSEMBLE_TASK)
                step = f"{task.kind} {task.subject.partition('/')[2]}".strip()
                jobs.end(session, job, jobs.FAILED, reason if concerns_job else f"{step}: {reason}")

    def _redo_partitions(self, running: RunningTask, missing: PartsMissing) -> None:
        """Run partitions again whose files are missing. Fails the job if this happens too often."""
        log.warning("parts.missing", job=running.job_id, reason=str(missing))
        with self._sessions.begin() as session:
            job = lock_job(session, running)
            queue.finish(session, running.task.id, running.task.fence)
            rows = [jobs.partition(session, job.id, *place) for place in missing.places]
            for row in rows:
                jobs.redo_partition(session, job, row)
            if any(row.failures >= job.max_attempts for row in rows):
                jobs.end(session, job, jobs.FAILED, str(missing))

    def _delete_late_files(self, job_id: int) -> None:
        """Delete files that a stale task wrote after its job was finished or deleted."""
        with db.reading(self._sessions) as session:
            job = session.get(JobRow, job_id)
        if job is None or job.state == jobs.DONE:
            delete_job_directory(self._settings, job_id)

    def _extend_leases(self) -> None:
        while not self._stopped.wait(HEARTBEAT_S):  # also while the lanes finish
            self.heartbeat()

    def _loop(self, step: Callable[[], None], nice: int = 0) -> None:
        os.nice(nice)  # on Linux this changes the calling thread only
        while not self._stopping.is_set():
            try:
                step()
            except Exception:  # most likely of the database: running tasks return when their leases expire
                log.exception("worker.thread_failed")
                self._stopping.wait(ERROR_PAUSE_S)


def _fail_lost_task(session: Session) -> None:
    """Fail the job of a task whose worker died at its last attempt, if there is such a task."""
    task = queue.peek_lost(session, JOB_TASKS)
    if task is None:
        return
    with contextlib.suppress(NotFound):
        job = jobs.lock(session, int(task.subject.partition("/")[0]))  # before its task, as in `lock_job`
        if queue.fail_lost(session, JOB_TASKS, task.id):
            reason = f"{task.kind} {task.subject}: {task.deaths} workers died while they ran it"
            jobs.end(session, job, jobs.FAILED, reason)


def _count_failure(session: Session, running: RunningTask) -> int:
    """Count a failed attempt and return the number of failures.

    A task on Ray counts one failure for each unfinished partition and returns the largest number.
    """
    task = running.task
    if task.kind == PARTITION_TASK:
        rows = [jobs.partition(session, running.job_id, *running.place)]
    elif task.kind == RAY_TASK:
        rows = [p for p in jobs.partitions(session, running.job_id) if p.result is None]
    else:
        return task.failures + 1
    for row in rows:
        row.failures += 1
    return max((row.failures for row in rows), default=task.attempt)
