"""Jobs: enqueue one, plan it, count its partitions once each, end it, cancel it, resume it, forget it.

A job is planned by one task, worked on by one task for each partition, and assembled by one task; the last
partition to be done enqueues that one. A training does this once for each of its stages. A partition with a
`result` is done: it was recorded in the transaction that finished its task, under the fence of its claim, so
it counts once however often it was computed.

Whoever changes a job and its tasks locks the job first (`lock`), then the tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry import queue
from registry.errors import Conflict, NotFound
from registry.jobs.tables import JobRow, PartitionRow
from registry.pages import Page, after, cut
from registry.tables import TaskRow, VersionRow, now

QUEUED = "queued"  # accepted, no worker has begun
RUNNING = "running"  # being planned, worked on, or assembled
DONE = "done"  # the output is there
FAILED = "failed"  # `error` says why; what was done is kept, and `resume` goes on from there
CANCELLED = "cancelled"  # somebody stopped it; `resume` goes on from there
OPEN = (QUEUED, RUNNING)

PLAN, PARTITION, ASSEMBLE, RAY = "plan", "partition", "assemble", "ray"
KINDS = (PLAN, PARTITION, ASSEMBLE, RAY)
SPREAD = ("score", "fit")  # the stages whose partitions share a task of kind RAY, if that is the job's engine
SCORE, TRAIN = "score", "train"  # the kinds of jobs; SCORE is also the stage of its partitions
READ = "00-read"  # a training's first stage
ROWS_COUNT = (SCORE, READ)  # whose rows are the job's: the other stages see the same rows again
IN_TURN = "in_turn"  # a partition whose `part` has this key waits for the one before it in its stage

SOON = 5
"""The priority of planning and assembling: they are short, and must not wait for another job's partitions."""
LOST_WORKERS = 30  # so often may a worker die over one task before the task is held to be the cause
KEEP_S = 7 * 24 * 3600.0


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it was accepted. `version` is pinned here: an alias that moves later changes nothing."""

    kind: str
    spec: dict[str, Any]
    model: str | None
    version: VersionRow | None = None
    engine: str = "local"
    max_attempts: int = 4
    keep_s: float = KEEP_S
    schedule: str | None = None
    parent_id: int | None = None


class Then(msgspec.Struct, frozen=True):
    """The job that scores with what a training made."""

    id: int
    state: str


class NewPartition(msgspec.Struct, frozen=True):
    part: dict[str, Any]
    rows: int | None = None  # None: not known before it is read


def create(session: Session, new: NewJob, *, by: str) -> JobRow:
    """Record a job in state `queued` and enqueue its planning, in the caller's transaction."""
    job = JobRow(
        kind=new.kind,
        state=QUEUED,
        engine=new.engine,
        spec=new.spec,
        model=new.model,
        version=None if new.version is None else new.version.number,
        version_id=None if new.version is None else new.version.id,
        max_attempts=new.max_attempts,
        keep_s=new.keep_s,
        schedule=new.schedule,
        parent_id=new.parent_id,
        created_at=now(),
        created_by=by,
    )
    session.add(job)
    session.flush()
    enqueue_step(session, job, PLAN)
    return job


def enqueue_step(session: Session, job: JobRow, kind: str) -> int:
    """The task that plans or assembles the job."""
    attempts = job.max_attempts + LOST_WORKERS
    return queue.enqueue(session, kind, str(job.id), priority=SOON, max_attempts=attempts)


def get(session: Session, job_id: int) -> JobRow:
    """Raises `NotFound`."""
    job = session.get(JobRow, job_id)
    if job is None:
        raise NotFound("job", job_id)
    return job


def then(session: Session, trainings: Collection[int]) -> dict[int, Then]:
    """By training: the job that it started at its end."""
    if not trainings:
        return {}
    found = select(JobRow.parent_id, JobRow.id, JobRow.state).where(JobRow.parent_id.in_(trainings))
    rows = session.execute(found)
    return {parent: Then(job_id, state) for parent, job_id, state in rows if parent is not None}


def lock(session: Session, job_id: int) -> JobRow:
    """The job, nobody else's until the transaction ends. Raises `NotFound`."""
    job = session.get(JobRow, job_id, with_for_update=True, populate_existing=True)
    if job is None:
        raise NotFound("job", job_id)
    return job


def search(
    session: Session,
    *,
    state: str | None = None,
    model: str | None = None,
    models: Collection[str] | None = None,
    page_size: int = 100,
    page_token: str | None = None,
) -> Page[JobRow]:
    """Jobs, newest first; `models`: only of these."""
    query = select(JobRow)
    if (last := after(page_token, int)) is not None:
        query = query.where(JobRow.id < last)
    if state is not None:
        query = query.where(JobRow.state == state)
    if model is not None:
        query = query.where(JobRow.model == model)
    if models is not None:
        query = query.where(JobRow.model.in_(models))
    rows = session.scalars(query.order_by(JobRow.id.desc()).limit(page_size + 1)).all()
    return cut(rows, page_size, lambda j: j.id)


def partitions(session: Session, job_id: int) -> list[PartitionRow]:
    """In the order of the input, stages in the order of their names."""
    query = select(PartitionRow).where(PartitionRow.job_id == job_id)
    return list(session.scalars(query.order_by(PartitionRow.stage, PartitionRow.number)))


def partition(session: Session, job_id: int, stage: str, number: int) -> PartitionRow:
    """Raises `NotFound`."""
    row = session.get(PartitionRow, (job_id, stage, number))
    if row is None:
        raise NotFound("partition", f"{job_id}/{stage}/{number}")
    return row


def plan(session: Session, job: JobRow, stage: str, parts: Sequence[NewPartition]) -> None:
    """Add the partitions of a stage and a task for each, or enqueue the assembly when there are none."""
    for number, new in enumerate(parts):
        row = PartitionRow(job_id=job.id, stage=stage, number=number, part=new.part, rows_total=new.rows)
        session.add(row)
    session.flush()
    enqueue_rest(session, job)


def enqueue_rest(session: Session, job: JobRow) -> None:
    """A task for each partition that is not done and waits for no other; when all are, the assembly's."""
    found = partitions(session, job.id)
    done = {(p.stage, p.number) for p in found if p.result is not None}
    waiting, moment = [p for p in found if p.result is None], queue.clock(session)
    for row in waiting:
        row.rows = row.failed = row.failures = 0
        if not row.part.get(IN_TURN) or row.number == 0 or (row.stage, row.number - 1) in done:
            _enqueue_partition(session, job, row, moment)
    if not waiting:
        enqueue_step(session, job, ASSEMBLE)
    session.flush()


def _enqueue_partition(session: Session, job: JobRow, row: PartitionRow, moment: datetime) -> None:
    """A task that goes on from the fence of the one before: who slept through that one may still be writing
    its files, and theirs must not have the same names. (What holds a task of kind RAY computes nothing.)"""
    subject, attempts = f"{job.id}/{row.stage}/{row.number}", job.max_attempts + LOST_WORKERS
    fence = row.task.fence if row.task else 0
    if job.engine == RAY and row.stage.endswith(SPREAD):
        task_id = queue.enqueue_once(session, RAY, str(job.id), max_attempts=100 * LOST_WORKERS)
        row.task = session.get_one(TaskRow, task_id)
    else:
        more: Any = {"max_attempts": attempts, "concurrency_key": job.model, "fence": fence}
        row.task = queue.task(PARTITION, subject, moment, **more)


def partition_done(
    session: Session, job: JobRow, row: PartitionRow, *, rows: int, failed: int, result: dict[str, Any]
) -> None:
    """Count a partition, and enqueue the one that waits for it; the job's last one enqueues the assembly. The
    job is locked by the caller."""
    row.rows, row.failed, row.rows_total = rows, failed, rows + failed
    row.result, row.finished_at = result, now()
    following = session.get(PartitionRow, (job.id, row.stage, row.number + 1))
    if following is not None and following.result is None and following.part.get(IN_TURN):
        _enqueue_partition(session, job, following, queue.clock(session))
    session.flush()
    left = select(func.count()).where(PartitionRow.job_id == job.id, PartitionRow.finished_at.is_(None))
    if session.scalar(left) == 0:
        enqueue_step(session, job, ASSEMBLE)


def partition_lost(session: Session, job: JobRow, row: PartitionRow) -> None:
    """What a partition made is not there any more: it has to be done again, and counts once it is. The job is
    locked by the caller."""
    row.rows, row.failed, row.result, row.finished_at = 0, 0, None, None
    row.failures += 1
    _enqueue_partition(session, job, row, queue.clock(session))
    session.flush()


def end(session: Session, job: JobRow, state: str, error: str | None = None) -> None:
    """The job is `done`, `failed` or `cancelled`; what it still had in the queue is not wanted any more."""
    undone = (PartitionRow.job_id == job.id, PartitionRow.finished_at.is_(None))
    queue.cancel_all(session, select(PartitionRow.task_id).where(*undone))
    for kind in (PLAN, ASSEMBLE):
        queue.cancel(session, kind, str(job.id))
    job.state, job.error, job.finished_at = state, error, now()
    job.expires_at = job.finished_at + timedelta(seconds=job.keep_s)


def cancel(session: Session, job_id: int) -> JobRow:
    """Stop it; cancelling a cancelled job changes nothing. Raises `NotFound`, `Conflict`."""
    job = lock(session, job_id)
    if job.state == CANCELLED:
        return job
    if job.state not in OPEN:
        raise Conflict(f"job {job_id} is {job.state}; only a job that is queued or running can be cancelled")
    end(session, job, CANCELLED)
    return job


def resume(session: Session, job_id: int) -> JobRow:
    """Go on with what a failed or cancelled job has not done; what is done is not done again.

    Raises `NotFound`, `Conflict`.
    """
    job = lock(session, job_id)
    if job.state not in (FAILED, CANCELLED):
        raise Conflict(f"job {job_id} is {job.state}; only a failed or cancelled job can be resumed")
    job.state, job.error, job.errors = QUEUED, None, None
    job.started_at = job.finished_at = job.expires_at = None
    if job.plan is None:
        enqueue_step(session, job, PLAN)
    else:
        enqueue_rest(session, job)
    return job
