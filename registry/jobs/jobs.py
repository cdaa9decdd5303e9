"""Jobs: create, plan, count partitions, end, cancel, resume; progress; deletion after expiry.

A job has one task that plans it, one task per partition, and one task that assembles the results. The
assembly is enqueued with the result of the last partition. A training does this once for each of its stages.
A job's stages run in the order of their names, and a job counts the rows of its first stage.
A partition with a `result` is done. The result is recorded in the transaction that finishes its task, under
the fence of its claim, so a partition counts once even if it was computed several times.

Lock order: first the job (`lock`), then its tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Select, and_, bindparam, case, delete, func, or_, select
from sqlalchemy.orm import Session

from registry import queue
from registry.errors import Conflict, NotFound
from registry.jobs.tables import JobRow, PartitionRow
from registry.pages import Page, decode_token, make_page
from registry.tables import TaskRow, VersionRow, now
from registry.vocabulary import (
    ASSEMBLE_TASK,
    DEFAULT_MAX_ATTEMPTS,
    JOB_END_STATES,
    JOB_STATES,
    JOB_TASKS,
    LOCAL,
    PARTITION_TASK,
    PLAN_TASK,
    RAY,
    RAY_TASK,
    Engine,
    JobKind,
    JobState,
)

QUEUED: JobState = "queued"
RUNNING: JobState = "running"
DONE: JobState = "done"
FAILED: JobState = "failed"
CANCELLED: JobState = "cancelled"
OPEN_STATES = tuple(state for state in JOB_STATES if state not in JOB_END_STATES)

SCORE_STAGE = "score"  # the one stage of a scoring job
READ_STAGE = "00-read"  # the first stage of a training
SEQUENTIAL = "in_turn"
"""A partition whose `part` has this key starts after the partition before it in its stage is done."""
ON_RAY = "on_ray"
"""With the engine Ray, the partitions whose `part` has this key share one task of kind `RAY_TASK`."""

STEP_PRIORITY = 5
"""Priority of planning and assembly: short tasks that must not wait for partitions of other jobs."""
MAX_LOST_WORKERS = 30
"""Attempts beyond the job's `max_attempts`, for workers that die. See `attempt_limit`."""
DEFAULT_KEEP_S = 7 * 24 * 3600.0


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted job. `version` is fixed here: moving an alias later does not affect the job."""

    kind: JobKind
    spec: dict[str, Any]
    model: str | None
    version: VersionRow | None = None
    engine: Engine = LOCAL
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    keep_s: float = DEFAULT_KEEP_S
    schedule: str | None = None
    parent_id: int | None = None


class FollowUpJob(msgspec.Struct, frozen=True):
    """The scoring job that a training started with the version it published."""

    id: int
    state: str


class NewPartition(msgspec.Struct, frozen=True):
    part: dict[str, Any]
    rows: int | None = None  # None: unknown until the partition is read


class PartitionSummary(NamedTuple):
    """A partition with the state of its task, as records show it. Without a task its fields are None."""

    stage: str
    number: int
    part: dict[str, Any]
    rows: int
    failed: int
    failures: int
    result: dict[str, Any] | None
    worker: str | None
    started_at: datetime | None
    finished_at: datetime | None
    task_kind: str | None
    task_state: str | None
    task_error: str | None
    attempt: int | None


class JobProgress(msgspec.Struct, frozen=True):
    """Sums over a job's partitions. Rows of a running partition count as they are processed."""

    partitions_total: int = 0
    partitions_done: int = 0
    rows_total: int | None = None  # None while the row count of a partition is unknown
    rows_done: int = 0
    rows_failed: int = 0
    attempts: int = 0  # of the partition with the most attempts
    rows_since_start: int = 0  # done and failed rows since the job was started or resumed
    partitions_since_start: int = 0


def create(session: Session, new: NewJob, *, by: str) -> JobRow:
    """Add a job in state `queued` and enqueue its planning, in the caller's transaction."""
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
    enqueue_step(session, job, PLAN_TASK)
    return job


def attempt_limit(job: JobRow) -> int:
    """Return the number of attempts of a task, with those whose worker died, after which the job fails.

    Errors alone fail it after `max_attempts`; only deaths of workers reach this limit.
    """
    return job.max_attempts + MAX_LOST_WORKERS


def enqueue_step(session: Session, job: JobRow, kind: str) -> int:
    """Enqueue the task that plans or assembles the job, and return its id."""
    limit = attempt_limit(job)
    return queue.enqueue(session, kind, str(job.id), priority=STEP_PRIORITY, max_attempts=limit)


def get(session: Session, job_id: int) -> JobRow:
    """Raises `NotFound`."""
    job = session.get(JobRow, job_id)
    if job is None:
        raise NotFound("job", job_id)
    return job


def follow_up_jobs(session: Session, training_ids: Collection[int]) -> dict[int, FollowUpJob]:
    """Return the jobs that trainings started when they ended, by the training's id."""
    if not training_ids:
        return {}
    query = select(JobRow.parent_id, JobRow.id, JobRow.state).where(JobRow.parent_id.in_(training_ids))
    rows = session.execute(query)
    return {parent: FollowUpJob(job_id, state) for parent, job_id, state in rows if parent is not None}


def lock(session: Session, job_id: int) -> JobRow:
    """Return the job, locked until the transaction ends. Raises `NotFound`."""
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
    """Return a page of jobs, newest first. `models` restricts it to jobs of these models."""
    query = select(JobRow)
    if (last := decode_token(page_token, int)) is not None:
        query = query.where(JobRow.id < last)
    if state is not None:
        query = query.where(JobRow.state == state)
    if model is not None:
        query = query.where(JobRow.model == model)
    if models is not None:
        query = query.where(JobRow.model.in_(models))
    rows = session.scalars(query.order_by(JobRow.id.desc()).limit(page_size + 1)).all()
    return make_page(rows, page_size, lambda j: j.id)


def partitions(session: Session, job_id: int) -> list[PartitionRow]:
    """Return the partitions, ordered by stage name, then in the order of the input."""
    query = select(PartitionRow).where(PartitionRow.job_id == job_id)
    return list(session.scalars(query.order_by(PartitionRow.stage, PartitionRow.number)))


def partition(session: Session, job_id: int, stage: str, number: int) -> PartitionRow:
    """Raises `NotFound`."""
    row = session.get(PartitionRow, (job_id, stage, number))
    if row is None:
        raise NotFound("partition", f"{job_id}/{stage}/{number}")
    return row


def add_partitions(session: Session, job: JobRow, stage: str, parts: Sequence[NewPartition]) -> None:
    """Add the partitions of a stage with a task for each. Without partitions, enqueue the assembly."""
    for number, new in enumerate(parts):
        row = PartitionRow(job_id=job.id, stage=stage, number=number, part=new.part, rows_total=new.rows)
        session.add(row)
    session.flush()
    enqueue_pending(session, job)


def enqueue_pending(session: Session, job: JobRow) -> None:
    """Enqueue each partition that is not done and may start; if all are done, enqueue the assembly."""
    rows = partitions(session, job.id)
    done = {(p.stage, p.number) for p in rows if p.result is not None}
    pending, moment = [p for p in rows if p.result is None], queue.clock(session)
    for row in pending:
        row.rows = row.failed = row.failures = 0
        if not row.part.get(SEQUENTIAL) or row.number == 0 or (row.stage, row.number - 1) in done:
            _enqueue_partition(session, job, row, moment)
    if not pending:
        enqueue_step(session, job, ASSEMBLE_TASK)
    session.flush()


def _enqueue_partition(session: Session, job: JobRow, row: PartitionRow, moment: datetime) -> None:
    """Give the partition a new task.

    The new task continues the fence of the old one: an old worker whose lease expired may still write files,
    and their names, which contain the fence, must differ from those of the new worker. Tasks of kind
    `RAY_TASK` write no files.
    """
    subject = f"{job.id}/{row.stage}/{row.number}"
    fence = row.task.fence if row.task else 0
    if job.engine == RAY and row.part.get(ON_RAY):
        task_id = queue.enqueue_once(session, RAY_TASK, str(job.id), max_attempts=100 * MAX_LOST_WORKERS)
        row.task = session.get_one(TaskRow, task_id)
    else:
        options: Any = {"concurrency_key": job.model, "fence": fence}
        row.task = queue.new_task(PARTITION_TASK, subject, moment, max_attempts=attempt_limit(job), **options)


def finish_partition(
    session: Session, job: JobRow, row: PartitionRow, *, rows: int, failed: int, result: dict[str, Any]
) -> None:
    """Record a partition's result and enqueue what depends on it.

    That is the sequential partition after it, or the assembly if this was the last one. The caller has
    locked the job.
    """
    row.rows, row.failed, row.rows_total = rows, failed, rows + failed
    row.result, row.finished_at = result, now()
    following = session.get(PartitionRow, (job.id, row.stage, row.number + 1))
    if following is not None and following.result is None and following.part.get(SEQUENTIAL):
        _enqueue_partition(session, job, following, queue.clock(session))
    session.flush()
    unfinished = select(func.count()).where(PartitionRow.job_id == job.id, PartitionRow.finished_at.is_(None))
    if session.scalar(unfinished) == 0:
        enqueue_step(session, job, ASSEMBLE_TASK)


def redo_partition(session: Session, job: JobRow, row: PartitionRow) -> None:
    """Enqueue a finished partition again because its files are missing. The caller has locked the job."""
    row.rows, row.failed, row.result, row.finished_at = 0, 0, None, None
    row.failures += 1
    _enqueue_partition(session, job, row, queue.clock(session))
    session.flush()


def end(session: Session, job: JobRow, state: JobState, error: str | None = None) -> None:
    """Set the final state `done`, `failed` or `cancelled`, and cancel the job's open tasks."""
    unfinished = (PartitionRow.job_id == job.id, PartitionRow.finished_at.is_(None))
    queue.cancel_all(session, select(PartitionRow.task_id).where(*unfinished))
    for kind in (PLAN_TASK, ASSEMBLE_TASK):
        queue.cancel(session, kind, str(job.id))
    job.state, job.error, job.finished_at = state, error, now()
    job.expires_at = job.finished_at + timedelta(seconds=job.keep_s)


def cancel(session: Session, job_id: int) -> JobRow:
    """Stop the job. Without effect on a cancelled job. Raises `NotFound`, `Conflict`."""
    job = lock(session, job_id)
    if job.state == CANCELLED:
        return job
    if job.state not in OPEN_STATES:
        raise Conflict(f"job {job_id} is {job.state}; only a job that is queued or running can be cancelled")
    end(session, job, CANCELLED)
    return job


def resume(session: Session, job_id: int) -> JobRow:
    """Queue a failed or cancelled job again. Finished partitions keep their results.

    Raises `NotFound`, `Conflict`.
    """
    job = lock(session, job_id)
    if job.state not in (FAILED, CANCELLED):
        raise Conflict(f"job {job_id} is {job.state}; only a failed or cancelled job can be resumed")
    job.state, job.error, job.errors = QUEUED, None, None
    job.started_at = job.finished_at = job.expires_at = None
    if job.plan is None:
        enqueue_step(session, job, PLAN_TASK)
    else:
        enqueue_pending(session, job)
    return job


def _progress_query() -> Select[int, *tuple[Any, ...]]:
    """The rows of a job are those of its first stage by name: later stages process the same rows again."""
    is_asked = PartitionRow.job_id.in_(bindparam("job_ids", expanding=True))
    first_stage = (
        select(PartitionRow.job_id, func.min(PartitionRow.stage).label("name"))
        .where(is_asked)
        .group_by(PartitionRow.job_id)
        .subquery()
    )
    counts = PartitionRow.stage == first_stage.c.name
    since_start = PartitionRow.finished_at >= JobRow.started_at
    rows_since_start = case(
        (or_(PartitionRow.finished_at.is_(None), since_start), PartitionRow.rows + PartitionRow.failed)
    )
    return (
        select(
            PartitionRow.job_id,
            func.count(),
            func.count(PartitionRow.finished_at),
            func.count(case((and_(counts, PartitionRow.rows_total.is_(None)), 1))),
            func.sum(case((counts, PartitionRow.rows_total), else_=0)),
            func.sum(case((counts, PartitionRow.rows), else_=0)),
            func.sum(case((counts, PartitionRow.failed), else_=0)),
            func.max(TaskRow.attempt),
            func.sum(case((counts, rows_since_start), else_=0)),
            func.count(case((since_start, 1))),
        )
        .join(JobRow, JobRow.id == PartitionRow.job_id)
        .join(first_stage, first_stage.c.job_id == PartitionRow.job_id)
        .outerjoin(TaskRow, TaskRow.id == PartitionRow.task_id)
        .where(is_asked)
        .group_by(PartitionRow.job_id)
    )


_PROGRESS_QUERY = _progress_query()
"""Built once: clients poll jobs, and building the query takes a fifth of the time of one poll."""
_SUMMARY_QUERY = (
    select(
        PartitionRow.stage,
        PartitionRow.number,
        PartitionRow.part,
        PartitionRow.rows,
        PartitionRow.failed,
        PartitionRow.failures,
        PartitionRow.result,
        PartitionRow.worker,
        PartitionRow.started_at,
        PartitionRow.finished_at,
        TaskRow.kind,
        TaskRow.state,
        TaskRow.error,
        TaskRow.attempt,
    )
    .outerjoin(TaskRow, TaskRow.id == PartitionRow.task_id)
    .where(PartitionRow.job_id == bindparam("job_id"))
    .order_by(PartitionRow.stage, PartitionRow.number)
)
"""Selects columns, not entities: a job has thousands of partitions, and entities take three times as long."""


def progress(session: Session, job_ids: Sequence[int]) -> dict[int, JobProgress]:
    """Return the progress by job id. Jobs that are not planned yet are left out."""
    return {
        job_id: JobProgress(
            partitions_total=total,
            partitions_done=done,
            rows_total=None if unknown else int(rows),
            rows_done=int(rows_done),
            rows_failed=int(rows_failed),
            attempts=attempts or 0,
            rows_since_start=int(since_start or 0),
            partitions_since_start=ended,
        )
        for job_id, total, done, unknown, rows, rows_done, rows_failed, attempts, since_start, ended in (
            session.execute(_PROGRESS_QUERY, {"job_ids": list(job_ids)})
        )
    }


def partition_summaries(session: Session, job_id: int) -> list[PartitionSummary]:
    """Return the partitions with their tasks, ordered by stage name, then in the order of the input."""
    return [PartitionSummary(*row) for row in session.execute(_SUMMARY_QUERY, {"job_id": job_id})]


def any_expired(session: Session) -> bool:
    """Report whether `delete_expired` would delete a job."""
    return session.scalar(select(JobRow.id).where(JobRow.expires_at <= now()).limit(1)) is not None


def delete_expired(session: Session) -> list[int]:
    """Delete up to 100 expired jobs with their partitions and tasks, and return the jobs' ids.

    The caller deletes their files. Skips jobs that are locked, for example by `resume`.
    """
    expired = select(JobRow.id).where(JobRow.expires_at <= now()).limit(100)
    job_ids = session.scalars(expired.with_for_update(skip_locked=True)).all()
    for job_id in job_ids:
        session.execute(delete(JobRow).where(JobRow.id == job_id))
        of_job = or_(TaskRow.subject == str(job_id), TaskRow.subject.startswith(f"{job_id}/"))
        session.execute(delete(TaskRow).where(TaskRow.kind.in_(JOB_TASKS), of_job))
    return list(job_ids)
