"""The worker: lanes that claim tasks of jobs, do them, and record what came of them.

A lane is a thread; what it runs releases the GIL. One more thread keeps the leases. A worker that is killed
is noticed when its leases run out; one that sleeps through them is told by its fence that it changes nothing.
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
from service.worker.flight import Flight, Stopping, held
from service.worker.job_kind import Gone, Hopeless, Later, Piece, Stage, Whole, Work, discard, told

BEAT_S = 1.0
POLL_S = 0.1
ERROR_S = 2.0
FIRST_BACKOFF_S = 1.0
MOST_BACKOFF_S = 60.0
OURS = (PLAN_TASK, PARTITION_TASK, ASSEMBLE_TASK)  # what lanes do themselves

log = telemetry.logger(__name__)


class Worker:
    """`works` by kind of job and engine. `spread` does a task of kind `RAY` and finishes it, on a lane of its
    own, for it only waits. `nice`: lanes let others go first; what keeps the leases does not."""

    def __init__(
        self,
        settings: Settings,
        sessions: db.Sessions,
        works: Mapping[tuple[str, str], Work],
        spread: Callable[[JobRow, Flight], None] | None = None,
        nice: int = 0,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._works, self._spread = works, spread
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._stopping, self._stopped = threading.Event(), threading.Event()
        self._claiming = threading.Lock()  # one lane looks for a task at a time
        self._more = threading.Event()  # something was done: what follows from it may be there
        self._flights: set[Flight] = set()
        self._lanes = [
            threading.Thread(target=self._loop, args=(self.step, nice), name=f"lane {n}", daemon=True)
            for n in range(settings.batch_lanes)
        ]
        if spread is not None:
            lane = threading.Thread(target=self._loop, args=(self.spread,), name="lane of Ray", daemon=True)
            self._lanes.append(lane)
        self._leases = threading.Thread(target=self._keep_leases, name="leases", daemon=True)

    def start(self) -> None:
        for thread in (*self._lanes, self._leases):
            thread.start()

    def stop(self, grace_s: float) -> None:
        """Give unfinished work back to the queue. A lane that does not come to an end is left alone: its
        lease runs out."""
        self._stopping.set()
        self._more.set()
        until = time.monotonic() + grace_s
        for thread in self._lanes:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
        self._stopped.set()
        if self._leases.ident is not None:
            self._leases.join()

    def spread(self) -> None:
        """Do one task on Ray, or wait a little when there is none."""
        flight = self._take_off((RAY_TASK,))
        if flight is None:
            self._stopping.wait(POLL_S)
        else:
            self._fly(flight)

    def step(self) -> None:
        """Do one task, or wait a little when there is none."""
        with self._claiming:
            self._more.clear()
            flight = self._take_off(OURS)
            if flight is None:
                self._more.wait(POLL_S)
                return
        self._fly(flight)
        self._more.set()

    def _take_off(self, kinds: Sequence[str]) -> Flight | None:
        task = None if self._stopping.is_set() else self._claim(kinds)
        if task is None:
            return None
        flight = Flight(task, self._stopping)
        self._flights.add(flight)
        return flight

    def _claim(self, kinds: Sequence[str]) -> ClaimedTask | None:
        with db.reading(self._sessions) as session:  # a look costs the writers nothing
            if not queue.has_claimable(session, kinds, self._settings.batch_lanes_per_model):
                return None
        with self._sessions.begin() as session:
            self._tell_lost(session)
            most = self._settings.batch_lanes_per_model
            return queue.claim(session, kinds, self._name, queue.JOB_LEASE_S, max_per_key=most)

    def _tell_lost(self, session: Session) -> None:
        lost = queue.peek_lost(session, JOB_TASKS)
        if lost is None:
            return
        with contextlib.suppress(NotFound):
            job = jobs.lock(session, int(lost.subject.partition("/")[0]))  # before its task, like everybody
            if queue.fail_lost(session, JOB_TASKS, lost.id):
                reason = f"{lost.kind} {lost.subject}: the worker died at each of {lost.attempt} attempts"
                jobs.end(session, job, jobs.FAILED, reason)

    def _fly(self, flight: Flight) -> None:
        task = flight.task
        try:
            self._try(flight)
        except StaleTask as stale:  # done elsewhere, cancelled, or forgotten meanwhile
            log.info("task.dropped", task=task.id, of=task.subject, why=str(stale))
            self._tidy(flight.job_id)
        finally:
            self._flights.discard(flight)

    def _try(self, flight: Flight) -> None:
        """Do the task, or say that it failed. Raises `StaleTask` when it is another's by now."""
        task = flight.task
        try:
            self._do(flight)
        except StaleTask:
            raise
        except Later as later:
            self._put_back(task, later.in_s)
        except Gone as gone:
            self._do_again(flight, gone)
        except Stopping:
            self._put_back(task, 0.0)
        except (OperationalError, InternalError) as error:  # the database's trouble is no failure of the task
            log.warning("task.put_back", task=task.id, of=task.subject, why=str(error.orig))
            self._put_back(task, ERROR_S)
        except Exception as error:
            if self._stopping.is_set():  # what it was using may be closed by now
                self._put_back(task, 0.0)
                return
            if not isinstance(error, TriviumError | OSError):
                log.exception("task.failed", task=task.id, kind=task.kind, of=task.subject)
            self._fail(flight, error)

    def _tidy(self, job_id: int) -> None:
        """Of a job that is done or forgotten, leave nothing that was written too late."""
        with db.reading(self._sessions) as session:
            job = session.get(JobRow, job_id)
        if job is None or job.state == jobs.DONE:
            discard(self._settings, job_id)

    def _do(self, flight: Flight) -> None:
        job, row = self._begin(flight)
        if flight.task.kind == RAY_TASK:
            assert self._spread is not None, "no other claims it"
            self._spread(job, flight)
            return
        work = self._works[job.kind, job.engine]
        made: Stage | Piece | Whole
        if flight.task.kind == PLAN_TASK:
            made = work.plan(job, flight.alive)
        elif row is not None:
            made = work.partition(job, row, flight.task.fence, flight.alive)
        else:
            with db.reading(self._sessions) as session:
                pieces = jobs.partitions(session, job.id)
            made = work.assemble(job, pieces, flight.alive)
        with self._sessions.begin() as session:
            job = held(session, flight)
            queue.finish(session, flight.task.id, flight.task.fence)
            _record(session, job, flight, made)
        if job.state == jobs.DONE:
            discard(self._settings, job.id)
            log.info("job.done", job=job.id, kind=job.kind, model=job.model)

    def _begin(self, flight: Flight) -> tuple[JobRow, PartitionRow | None]:
        """The job, and the partition if the task is one; both as of now, and detached."""
        with self._sessions.begin() as session:
            job = held(session, flight)
            if job.state == jobs.QUEUED:
                job.state, job.started_at = jobs.RUNNING, job.started_at or now()
            row = None
            if flight.task.kind == PARTITION_TASK:
                row = jobs.partition(session, job.id, *flight.place)
                row.worker, row.started_at, row.rows, row.failed = self._name, now(), 0, 0
        return job, row

    def _put_back(self, task: ClaimedTask, in_s: float) -> None:
        with self._sessions.begin() as session:
            queue.release(session, task.id, task.fence, in_s)

    def _fail(self, flight: Flight, error: Exception) -> None:
        """Let the task be tried again after a while; when it has failed too often, the job has."""
        task = flight.task
        if isinstance(error, msgspec.ValidationError):  # of the plan: nothing else here is read from outside
            error = Hopeless(f"it was planned by another release ({str(error)[:200]}); start a new job")
        why = told(error)
        log.warning("task.failed", task=task.id, kind=task.kind, of=task.subject, why=why)
        with self._sessions.begin() as session:
            job = held(session, flight)
            failures = _count_failure(session, flight)
            hopeless = isinstance(error, Hopeless | Changed) or failures >= job.max_attempts
            backoff = min(FIRST_BACKOFF_S * 2 ** (failures - 1), MOST_BACKOFF_S)
            again = queue.fail(session, task.id, task.fence, why, None if hopeless else backoff)
            if not again:
                known = error if isinstance(error, Hopeless) else None
                job.errors = known.errors if known else None
                what = f"{task.kind} {task.subject.partition('/')[2]}".strip()
                of_all = task.kind == PLAN_TASK or (known and task.kind == ASSEMBLE_TASK)
                jobs.end(session, job, jobs.FAILED, why if of_all else f"{what}: {why}")

    def _do_again(self, flight: Flight, gone: Gone) -> None:
        """Instead of assembling: what is gone has to be made again. Too often, and the job has failed."""
        log.warning("parts.gone", job=flight.job_id, why=str(gone))
        with self._sessions.begin() as session:
            job = held(session, flight)
            queue.finish(session, flight.task.id, flight.task.fence)
            rows = [jobs.partition(session, job.id, *place) for place in gone.places]
            for row in rows:
                jobs.redo_partition(session, job, row)
            if any(row.failures >= job.max_attempts for row in rows):
                jobs.end(session, job, jobs.FAILED, str(gone))

    def _keep_leases(self) -> None:
        while not self._stopped.wait(BEAT_S):  # also while the lanes come to an end
            self.beat()

    def beat(self) -> None:
        """Extend the leases of all that is in flight, and note how far it is."""
        for flight in list(self._flights):
            try:
                with self._sessions.begin() as session:
                    queue.heartbeat(session, flight.task.id, flight.task.fence, queue.JOB_LEASE_S)
                    if flight.task.kind == PARTITION_TASK:
                        row = jobs.partition(session, flight.job_id, *flight.place)
                        if row.result is None:
                            row.rows, row.failed = flight.rows, flight.failed
            except (StaleTask, NotFound):
                flight.lost = True
            except Exception:  # of the database, most likely: the next beat may be in time
                log.exception("worker.beat_failed")

    def _loop(self, step: Callable[[], None], nice: int = 0) -> None:
        os.nice(nice)  # on Linux that of this thread alone
        while not self._stopping.is_set():
            try:
                step()
            except Exception:  # of the database, most likely: what is in flight comes back by its lease
                log.exception("worker.thread_failed")
                self._stopping.wait(ERROR_S)


def _count_failure(session: Session, flight: Flight) -> int:
    """How often this has failed. What is on Ray has failed with each partition that was not done."""
    if flight.task.kind == PARTITION_TASK:
        rows = [jobs.partition(session, flight.job_id, *flight.place)]
    elif flight.task.kind == RAY_TASK:
        rows = [p for p in jobs.partitions(session, flight.job_id) if p.result is None]
    else:
        return flight.task.failures + 1
    for row in rows:
        row.failures += 1
    return max((row.failures for row in rows), default=flight.task.attempt)


def _record(session: Session, job: JobRow, flight: Flight, made: Stage | Piece | Whole) -> None:
    if isinstance(made, Piece):
        row = jobs.partition(session, job.id, *flight.place)
        jobs.finish_partition(session, job, row, rows=made.rows, failed=made.failed, result=made.result)
    elif isinstance(made, Stage):
        job.plan = made.plan
        jobs.add_partitions(session, job, made.name, made.parts)
    else:
        job.output, job.errors, job.manifest = made.output, made.errors, made.manifest
        jobs.end(session, job, jobs.DONE)
