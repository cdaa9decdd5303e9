"""How far jobs are: what their partitions have come to."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Select, and_, bindparam, case, func, or_, select
from sqlalchemy.orm import Session

from registry.jobs import jobs
from registry.jobs.tables import JobRow, PartitionRow
from registry.tables import TaskRow


class Step(NamedTuple):
    """A partition as it is shown, with what its task says of it; all of the task is None when it has none."""

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


class Progress(msgspec.Struct, frozen=True):
    """What a job's partitions have come to. Rows of one that is being worked on count as they come."""

    partitions_total: int = 0
    partitions_done: int = 0
    rows_total: int | None = None  # None while a partition does not know
    rows_done: int = 0
    rows_failed: int = 0
    attempts: int = 0  # of the partition that took most
    rows_lately: int = 0  # since the job was started or resumed, with those that failed
    partitions_lately: int = 0


def _counted() -> Select[int, *tuple[Any, ...]]:
    counts = PartitionRow.stage.in_(jobs.ROWS_COUNT)
    lately = PartitionRow.finished_at >= JobRow.started_at
    seen = case((or_(PartitionRow.finished_at.is_(None), lately), PartitionRow.rows + PartitionRow.failed))
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
            func.sum(case((counts, seen), else_=0)),
            func.count(case((lately, 1))),
        )
        .join(JobRow, JobRow.id == PartitionRow.job_id)
        .outerjoin(TaskRow, TaskRow.id == PartitionRow.task_id)
        .where(PartitionRow.job_id.in_(bindparam("job_ids", expanding=True)))
        .group_by(PartitionRow.job_id)
    )


_STEPS = (
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
"""Columns: there are thousands, and as entities they take three times as long."""
_COUNTED = _counted()
"""Made once: jobs are watched, and to put it together takes a fifth of what a look at a job does."""


def of(session: Session, job_ids: Sequence[int]) -> dict[int, Progress]:
    """By job. One that is not planned yet has none."""
    return {
        job_id: Progress(
            total, done, None if unknown else int(rows), int(good), int(bad), most or 0, int(seen or 0), ended
        )
        for job_id, total, done, unknown, rows, good, bad, most, seen, ended in session.execute(
            _COUNTED, {"job_ids": list(job_ids)}
        )
    }


def steps(session: Session, job_id: int) -> list[Step]:
    """In the order of the input, stages in the order of their names."""
    return [Step(*row) for row in session.execute(_STEPS, {"job_id": job_id})]
