"""The batch road's tables: jobs, partitions, schedules and their runs. All others are in `tables.py`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column, relationship

from registry.tables import BY_BYTES, NEVER_AGAIN, Base, TaskRow, now


class JobRow(Base):
    """A batch job: what was asked for, what was planned, what came of it; see `registry/jobs/jobs.py`."""

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "state", "id"), Index(None, "model", "id"), NEVER_AGAIN)

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]  # score, train
    state: Mapped[str]  # queued -> running -> done | failed | cancelled
    engine: Mapped[str]  # local, ray
    spec: Mapped[dict[str, Any]]  # the request, as it was accepted
    model: Mapped[str | None] = mapped_column(BY_BYTES)  # what scores, or what a training publishes
    version: Mapped[int | None]  # pinned when the job was accepted; of a training: what it published
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id", ondelete="SET NULL"), index=True)
    plan: Mapped[dict[str, Any] | None]  # the frozen input; None: not planned yet
    max_attempts: Mapped[int]  # per partition
    output: Mapped[str | None] = mapped_column(index=True)  # blobs, once assembled
    errors: Mapped[str | None] = mapped_column(index=True)
    manifest: Mapped[dict[str, Any] | None]  # what was assembled: a row for each part
    error: Mapped[str | None]
    schedule: Mapped[str | None]  # the schedule that started it
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    created_by: Mapped[str]
    started_at: Mapped[datetime | None]  # and once more when it was resumed
    finished_at: Mapped[datetime | None]
    keep_s: Mapped[float]  # how long files and record are kept after the end
    expires_at: Mapped[datetime | None] = mapped_column(index=True)  # set when it ends


class PartitionRow(Base):
    """One step of a job that is done once: its task says whether it waits, runs or has failed."""

    __tablename__ = "partitions"

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    stage: Mapped[str] = mapped_column(primary_key=True)  # score; the stages of a training
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    task_id: Mapped[int | None] = mapped_column(ForeignKey("tasks.id"), index=True)
    part: Mapped[dict[str, Any]]  # which piece of the input
    rows_total: Mapped[int | None]  # None: not known before it is read
    rows: Mapped[int] = mapped_column(default=0)  # so far
    failed: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)  # attempts that failed; a worker that died is none
    result: Mapped[dict[str, Any] | None]  # {"file", "sha256", "errors", ...}; set: done, and counted once
    worker: Mapped[str | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    task: Mapped[TaskRow | None] = relationship(lazy="joined")


class ScheduleRow(Base):
    """When a job is started again and again; see `registry/jobs/schedules.py`."""

    __tablename__ = "schedules"

    name: Mapped[str] = mapped_column(BY_BYTES, primary_key=True)
    job: Mapped[dict[str, Any]]  # the body of POST /v1/jobs
    cron: Mapped[str | None]
    every_s: Mapped[float | None]
    timezone: Mapped[str]
    start_at: Mapped[datetime]
    has_fixed_start: Mapped[bool] = mapped_column(
        "start_given"
    )  # False: `start_at` is the time of the last edit
    catch_up: Mapped[bool]  # a run that was missed is made up for, once each; else skipped
    overlap: Mapped[bool]  # start although the run before still goes on
    paused: Mapped[bool]
    next_at: Mapped[datetime | None] = mapped_column(index=True)  # None: paused, or nothing to come
    created_at: Mapped[datetime] = mapped_column(default=now)
    created_by: Mapped[str]


class ScheduleRunRow(Base):
    """One due moment of a schedule, and what came of it."""

    __tablename__ = "schedule_runs"
    __table_args__ = (Index(None, "schedule", "id"), NEVER_AGAIN)

    id: Mapped[int] = mapped_column(primary_key=True)
    schedule: Mapped[str] = mapped_column(BY_BYTES, ForeignKey("schedules.name", ondelete="CASCADE"))
    due_at: Mapped[datetime]
    at: Mapped[datetime] = mapped_column(default=now)
    outcome: Mapped[str]  # started, skipped, failed
    reason: Mapped[str | None]
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"), index=True)

    job: Mapped[JobRow | None] = relationship(lazy="joined")
