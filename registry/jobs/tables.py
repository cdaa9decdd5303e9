"""Tables of jobs, partitions, schedules and the runs of schedules. All others: `registry/tables.py`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column, relationship

from registry.tables import BY_BYTES, NO_ID_REUSE, Base, TaskRow, now


class JobRow(Base):
    """A batch job: the request, its plan and its results; see `registry/jobs/jobs.py`."""

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "state", "id"), Index(None, "model", "id"), NO_ID_REUSE)

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]  # score, train
    state: Mapped[str]  # queued -> running -> done | failed | cancelled
    engine: Mapped[str]  # local, ray
    spec: Mapped[dict[str, Any]]  # the accepted request
    model: Mapped[str | None] = mapped_column(BY_BYTES)  # the model that scores, or that a training publishes
    version: Mapped[int | None]  # fixed when the job is accepted; for a training: its result
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id", ondelete="SET NULL"), index=True)
    plan: Mapped[dict[str, Any] | None]  # the frozen list of input files; None: not planned yet
    max_attempts: Mapped[int]  # per partition
    output: Mapped[str | None] = mapped_column(index=True)  # blobs, once assembled
    errors: Mapped[str | None] = mapped_column(index=True)
    manifest: Mapped[dict[str, Any] | None]  # of the assembled output: one row per part
    error: Mapped[str | None]
    schedule: Mapped[str | None]  # the schedule that started it
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    created_by: Mapped[str]
    started_at: Mapped[datetime | None]  # set again when the job is resumed
    finished_at: Mapped[datetime | None]
    keep_s: Mapped[float]  # files and record are deleted this long after the end
    expires_at: Mapped[datetime | None] = mapped_column(index=True)  # set when the job ends


class PartitionRow(Base):
    """One part of a job. The state of its task is the state of the partition."""

    __tablename__ = "partitions"

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    stage: Mapped[str] = mapped_column(primary_key=True)  # score; the stages of a training
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    task_id: Mapped[int | None] = mapped_column(ForeignKey("tasks.id"), index=True)
    part: Mapped[dict[str, Any]]  # the part of the input, and the keys `SEQUENTIAL` and `ON_RAY` of jobs.py
    rows_total: Mapped[int | None]  # None: unknown until the partition is read
    rows: Mapped[int] = mapped_column(default=0)  # processed so far
    failed: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)  # failed attempts, without those whose worker died
    result: Mapped[dict[str, Any] | None]  # {"file", "sha256", "errors", ...}; if set, the partition is done
    worker: Mapped[str | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    task: Mapped[TaskRow | None] = relationship(lazy="joined")


class ScheduleRow(Base):
    """A rule that starts a job repeatedly; see `registry/jobs/schedules.py`."""

    __tablename__ = "schedules"

    name: Mapped[str] = mapped_column(BY_BYTES, primary_key=True)
    job: Mapped[dict[str, Any]]  # the body of POST /v1/jobs
    cron: Mapped[str | None]
    every_s: Mapped[float | None]
    timezone: Mapped[str]
    start_at: Mapped[datetime]
    # True: `start_at` was set explicitly. False: it is the time of the last change of the recurrence.
    has_fixed_start: Mapped[bool] = mapped_column("start_given")
    catch_up: Mapped[bool]  # start missed runs later; otherwise skip them
    overlap: Mapped[bool]  # start even if the previous job is not finished
    paused: Mapped[bool]
    next_at: Mapped[datetime | None] = mapped_column(index=True)  # None: no further run
    created_at: Mapped[datetime] = mapped_column(default=now)
    created_by: Mapped[str]
    # The newest edits, oldest first: {"at": RFC 3339, "by", "fields"}
    edits: Mapped[list[dict[str, Any]]] = mapped_column(default=list)


class ScheduleRunRow(Base):
    """A due time of a schedule, and its outcome."""

    __tablename__ = "schedule_runs"
    __table_args__ = (Index(None, "schedule", "id"), NO_ID_REUSE)

    id: Mapped[int] = mapped_column(primary_key=True)
    schedule: Mapped[str] = mapped_column(BY_BYTES, ForeignKey("schedules.name", ondelete="CASCADE"))
    due_at: Mapped[datetime]
    at: Mapped[datetime] = mapped_column(default=now)
    outcome: Mapped[str]  # started, skipped, failed
    reason: Mapped[str | None]
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"), index=True)

    job: Mapped[JobRow | None] = relationship(lazy="joined")
