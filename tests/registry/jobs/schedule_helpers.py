"""Helpers for tests of schedules: minimal jobs, and a fixed time instead of the clock."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session

from registry.db import Sessions
from registry.jobs import jobs, schedules
from registry.jobs.recurrence import Recurrence
from registry.jobs.schedules import NewSchedule
from registry.jobs.tables import JobRow, ScheduleRow
from registry.vocabulary import SCORE
from tests.registry import child_actions

NOW = datetime(2026, 11, 22, 20, tzinfo=UTC)  # a Sunday
WEEKLY = Recurrence(cron="0 3 * * MON")
JOB = {"kind": "score", "model": "fraud"}


def add_schedule(
    sessions: Sessions,
    name: str = "weekly",
    *,
    job: dict[str, Any] = JOB,
    rule: Recurrence = WEEKLY,
    **options: Any,
) -> ScheduleRow:
    new = NewSchedule(name=name, job=job, recurrence=rule, **options)
    with sessions.begin() as session:
        return schedules.create(session, new, by="ann", moment=NOW)


def start_job(session: Session, schedule: ScheduleRow) -> JobRow:
    new = jobs.NewJob(kind=SCORE, spec=schedule.job, model=schedule.job.get("model"), schedule=schedule.name)
    return jobs.create(session, new, by=schedule.created_by)


def end_job(sessions: Sessions, job_id: int) -> None:
    with sessions.begin() as session:
        jobs.end(session, jobs.lock(session, job_id), jobs.DONE)


def tick_at(url: str, moments: list[datetime]) -> None:
    """Tick at each of `moments` until nothing is due. Runs in another process."""
    with child_actions.connected(url) as sessions:
        for moment in moments:
            while True:
                with sessions.begin() as session:
                    if schedules.tick(session, start_job, moment=moment) is None:
                        break
