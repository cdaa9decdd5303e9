"""Records of jobs and partitions, built from their database rows."""

from __future__ import annotations

from typing import Any

from registry import queue
from registry.jobs import jobs
from registry.jobs.jobs import JobProgress, PartitionSummary
from registry.jobs.tables import JobRow
from registry.tables import now
from registry.vocabulary import PARTITION_TASK
from service.batch.job_schemas import JobRecord, JobSummary, PartitionRecord
from service.submit.job_kinds import admission_of


def job_summary(job: JobRow, progress: JobProgress | None) -> JobSummary:
    """`progress`: None for a job that is not planned yet."""
    return JobSummary(**_summary_fields(job, progress))


def job_record(
    job: JobRow,
    progress: JobProgress | None,
    partitions: list[PartitionSummary],
    follow_up: jobs.FollowUpJob | None = None,
) -> JobRecord:
    """`progress`: None for a job that is not planned yet. `follow_up`: the scoring job of a training."""
    return JobRecord(
        **_summary_fields(job, progress),
        spec=job.spec,
        output=f"/v1/jobs/{job.id}/output" if job.output else None,
        errors=f"/v1/jobs/{job.id}/errors" if job.errors else None,
        manifest=job.manifest,
        then_id=None if follow_up is None else follow_up.id,
        then_state=None if follow_up is None else follow_up.state,  # type: ignore[arg-type]
        partitions=[_partition_record(job, p) for p in partitions],
    )


def _summary_fields(job: JobRow, planned: JobProgress | None) -> dict[str, Any]:
    progress = planned or JobProgress()
    rate, eta_s = _rate_and_eta(job, progress)
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "engine": job.engine,
        "model": job.model,
        "version": job.version,
        "rows_total": progress.rows_total if planned else None,
        "rows_done": progress.rows_done,
        "rows_failed": progress.rows_failed,
        "partitions_total": progress.partitions_total if planned else None,
        "partitions_done": progress.partitions_done,
        "attempts": progress.attempts,
        "rate": rate,
        "eta_s": eta_s,
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


def _rate_and_eta(job: JobRow, progress: JobProgress) -> tuple[float | None, float | None]:
    """Return rows per second since the job was started or resumed, and the estimated seconds left.

    The estimate uses partitions if the total number of rows is unknown.
    """
    if job.started_at is None or not progress.rows_since_start:
        return None, None
    seconds = max(((job.finished_at or now()) - job.started_at).total_seconds(), 1e-6)
    rate = round(progress.rows_since_start / seconds, 1)
    if job.state != jobs.RUNNING or not admission_of(job.kind).has_eta:
        return rate, None
    if progress.rows_total is not None:
        rows_left = progress.rows_total - progress.rows_done - progress.rows_failed
        return rate, round(rows_left * seconds / progress.rows_since_start, 1)
    if not progress.partitions_since_start:
        return rate, None
    partitions_left = progress.partitions_total - progress.partitions_done
    return rate, round(partitions_left * seconds / progress.partitions_since_start, 1)


def _partition_record(job: JobRow, row: PartitionSummary) -> PartitionRecord:
    has_part = (
        row.result is not None
        and "file" in row.result
        and row.stage == admission_of(job.kind).output_stage
        and job.output is None  # its parts are deleted once they are assembled
    )
    return PartitionRecord(
        stage=row.stage,
        number=row.number,
        file=_input_file(job, row.part),
        state="done" if row.result is not None else row.task_state or jobs.QUEUED,  # type: ignore[arg-type]
        rows=row.rows,
        failed=row.failed,
        attempts=row.attempt or 0,
        worker=row.worker,
        error=None if row.result is not None else _partition_error(job, row),
        started_at=row.started_at,
        finished_at=row.finished_at,
        output=f"/v1/jobs/{job.id}/partitions/{row.number}/output" if has_part else None,
    )


def _input_file(job: JobRow, part: dict[str, Any]) -> str | None:
    """Return the name of the input file; None for stages without input."""
    if job.plan is None or "file" not in part:
        return None
    name: str = job.plan["dataset"]["files"][part["file"]]["name"]
    return name


def _partition_error(job: JobRow, row: PartitionSummary) -> str | None:
    """Return the last error of an unfinished partition, else the number of workers that died on it."""
    if row.task_error or row.task_kind != PARTITION_TASK:
        return row.task_error
    if row.task_state not in (queue.QUEUED, queue.RUNNING):
        return None  # cancelled, perhaps during an attempt
    deaths = (row.attempt or 0) - row.failures - (row.task_state == queue.RUNNING)
    if deaths <= 0:
        return None
    workers = "worker" if deaths == 1 else "workers"
    limit = jobs.attempt_limit(job)
    return f"{deaths} {workers} died on this partition; the job fails after {limit} attempts in total"
