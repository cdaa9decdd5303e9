"""Rows of jobs and partitions as the wire shows them."""

from __future__ import annotations

from typing import Any

from registry import queue
from registry.jobs import jobs
from registry.jobs.jobs import JobProgress, PartitionSummary
from registry.jobs.tables import JobRow
from registry.tables import now
from registry.vocabulary import PARTITION_TASK, TRAIN
from service.batch.schemas import JobRecord, JobSummary, PartitionRecord


def summary(job: JobRow, progress: JobProgress | None) -> JobSummary:
    return JobSummary(**_fields(job, progress))


def record(
    job: JobRow,
    progress: JobProgress | None,
    partitions: list[PartitionSummary],
    then: jobs.FollowUpJob | None = None,
) -> JobRecord:
    return JobRecord(
        **_fields(job, progress),
        spec=job.spec,
        output=f"/v1/jobs/{job.id}/output" if job.output else None,
        errors=f"/v1/jobs/{job.id}/errors" if job.errors else None,
        manifest=job.manifest,
        then_id=None if then is None else then.id,
        then_state=None if then is None else then.state,  # type: ignore[arg-type]
        partitions=[_partition(job, p) for p in partitions],
    )


def _fields(job: JobRow, progress: JobProgress | None) -> dict[str, Any]:
    found = progress or JobProgress()
    rate, eta = _pace(job, found)
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "engine": job.engine,
        "model": job.model,
        "version": job.version,
        "rows_total": found.rows_total if progress else None,
        "rows_done": found.rows_done,
        "rows_failed": found.rows_failed,
        "partitions_total": found.partitions_total if progress else None,
        "partitions_done": found.partitions_done,
        "attempts": found.attempts,
        "rate": rate,
        "eta_s": eta,
        "max_attempts": job.max_attempts,
        "schedule": job.schedule,
        "parent_id": job.parent_id,
        "created_at": job.created_at,
        "created_by": job.created_by,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "expires_at": job.expires_at,
        "error": job.error,
    }


def _pace(job: JobRow, progress: JobProgress) -> tuple[float | None, float | None]:
    """Rows a second since the job was started or resumed, and seconds until all rows are done; by partitions
    where the number of rows is not known. A training has read all rows long before its end, which nobody can
    foresee."""
    if job.started_at is None or not progress.rows_since_start:
        return None, None
    seconds = max(((job.finished_at or now()) - job.started_at).total_seconds(), 1e-6)
    rate = round(progress.rows_since_start / seconds, 1)
    if job.state != jobs.RUNNING or job.kind == TRAIN:
        return rate, None
    if progress.rows_total is not None:
        left = progress.rows_total - progress.rows_done - progress.rows_failed
        return rate, round(left * seconds / progress.rows_since_start, 1)
    left, done = progress.partitions_total - progress.partitions_done, progress.partitions_since_start
    return rate, round(left * seconds / done, 1) if done else None


def _partition(job: JobRow, row: PartitionSummary) -> PartitionRecord:
    there = (
        row.result is not None
        and job.output is None
        and "file" in row.result
        and row.stage == jobs.SCORE_STAGE
    )
    return PartitionRecord(
        stage=row.stage,
        number=row.number,
        file=_file(job, row.part),
        state="done" if row.result is not None else row.task_state or jobs.QUEUED,  # type: ignore[arg-type]
        rows=row.rows,
        failed=row.failed,
        attempts=row.attempt or 0,
        worker=row.worker,
        error=None if row.result is not None else _trouble(row),
        started_at=row.started_at,
        finished_at=row.finished_at,
        output=f"/v1/jobs/{job.id}/partitions/{row.number}/output" if there else None,
    )


def _file(job: JobRow, part: dict[str, Any]) -> str | None:
    """An upload has no name but its digest, and most stages of a training read no input."""
    if job.plan is None or "file" not in part or job.spec["input"].get("artifact") is not None:
        return None
    name: str = job.plan["dataset"]["files"][part["file"]]["name"]
    return name


def _trouble(row: PartitionSummary) -> str | None:
    """Why it was not done at once: its last failure, or, as no failure counts, workers that died over it."""
    if row.task_error or row.task_kind != PARTITION_TASK:
        return row.task_error
    if row.task_state not in (queue.QUEUED, queue.RUNNING):
        return None  # it was cancelled, perhaps in the middle of an attempt
    died = (row.attempt or 0) - row.failures - (row.task_state == queue.RUNNING)
    return f"{died} of its workers died; {jobs.MAX_LOST_WORKERS} may" if died > 0 else None
