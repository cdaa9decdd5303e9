"""Schedules: jobs that are started again and again. What happens when a run is due: `registry/jobs/due.py`.

How a job is made of a schedule's `job` is not known here: the caller brings the `Start`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import delete, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from registry.errors import Conflict, NotFound
from registry.jobs import jobs, recurrence
from registry.jobs.recurrence import When
from registry.jobs.tables import JobRow, ScheduleRow, ScheduleRunRow
from registry.names import check_name
from registry.pages import Page, after, cut
from registry.queue import clock

STARTED = "started"  # there is a job
SKIPPED = "skipped"  # missed, or the run before still went on
FAILED = "failed"  # no job could be made of it; `reason` says why

KEPT = 1000
"""Entries of a schedule's history."""

Start = Callable[[Session, ScheduleRow], JobRow]
"""Makes the schedule's job, in the caller's transaction. Raises a `TriviumError` when it cannot."""


class NewSchedule(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    job: dict[str, Any]
    when: When
    catch_up: bool = False
    overlap: bool = False
    paused: bool = False


def create(session: Session, new: NewSchedule, *, by: str, moment: datetime | None = None) -> ScheduleRow:
    """Raises `Invalid` naming the field, `Conflict` when there is one of that name."""
    check_name(new.name)
    moment = moment or clock(session)
    begin = recurrence.first(new.when, moment)
    row = ScheduleRow(
        name=new.name,
        job=new.job,
        cron=new.when.cron,
        every_s=new.when.every_s,
        timezone=new.when.timezone,
        start_at=begin.start_at,
        start_given=_is_given(new.when),
        catch_up=new.catch_up,
        overlap=new.overlap,
        paused=new.paused,
        next_at=begin.run_at,
        created_at=moment,
        created_by=by,
    )
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError as error:
        raise Conflict(f"there is a schedule {new.name!r} already; change or delete it") from error
    return row


def _is_given(when: When) -> bool:
    return when.start_at is not None or when.start_in_s is not None


def model_of(job: dict[str, Any]) -> str | None:
    """The model that a job is about: what it scores with, or what a training publishes."""
    found: str | None = job.get("model") or job.get("publish", {}).get("name")
    return found


def get(session: Session, name: str) -> ScheduleRow:
    """Raises `NotFound`."""
    row = session.get(ScheduleRow, name)
    if row is None:
        raise NotFound("schedule", name)
    return row


def lock(session: Session, name: str) -> ScheduleRow:
    """The schedule, nobody else's until the transaction ends. Raises `NotFound`."""
    row = session.get(ScheduleRow, name, with_for_update=True, populate_existing=True)
    if row is None:
        raise NotFound("schedule", name)
    return row


def search(
    session: Session,
    *,
    models: Collection[str] | None = None,
    page_size: int = 100,
    page_token: str | None = None,
) -> Page[ScheduleRow]:
    """Schedules by name; `models`: only those whose job is about one of these."""
    query = select(ScheduleRow).order_by(ScheduleRow.name).limit(page_size + 1)
    if (last := after(page_token, str)) is not None:
        query = query.where(ScheduleRow.name > last)
    if models is not None:
        trained = ScheduleRow.job[("publish", "name")].as_string()
        query = query.where(or_(ScheduleRow.job["model"].as_string().in_(models), trained.in_(models)))
    return cut(list(session.scalars(query)), page_size, lambda s: s.name)


def edit(
    session: Session, name: str, changes: dict[str, Any], *, moment: datetime | None = None
) -> ScheduleRow:
    """Change what `changes` names: fields of a schedule and of its `When`. Giving one of `cron` and `every_s`
    takes the other away. A change of the times counts anew from now on, but not before a start that somebody
    said; what was due while the schedule was paused was not missed.

    Raises `NotFound`, `Invalid`.
    """
    row = lock(session, name)
    moment = moment or clock(session)
    times = {k: v for k, v in changes.items() if k in When.__struct_fields__ and v is not None}
    for field in ("job", "catch_up", "overlap", "paused"):
        if changes.get(field) is not None:
            setattr(row, field, changes[field])
    if times:
        kept: dict[str, Any] = {"timezone": row.timezone}
        if not {"cron", "every_s"} & times.keys():
            kept |= {"cron": row.cron, "every_s": row.every_s}
        if {"start_at", "start_in_s"} & times.keys():
            row.start_given = True
        elif row.start_given or not {"cron", "every_s"} & times.keys():
            kept |= {"start_at": row.start_at}
        when = When(**{**kept, **times})
        promised = row.next_at == row.start_at and row.start_at > moment and "start_at" in kept
        row.start_at, next_at = recurrence.first(when, moment)
        row.next_at = row.start_at if promised else next_at  # `start_in_s` said when the first run is
        row.cron, row.every_s, row.timezone = when.cron, when.every_s, when.timezone
    elif changes.get("paused") is False and row.next_at is not None and row.next_at <= moment:
        row.next_at = recurrence.following(when_of(row), moment)
    session.flush()
    return row


def remove(session: Session, name: str) -> None:
    """Delete the schedule and its history. The jobs it started stay. Raises `NotFound`."""
    session.delete(lock(session, name))


def run_now(session: Session, name: str, start: Start, *, by: str) -> JobRow:
    """Start the job now, paused or not; when the next run is stays as it is.

    Raises `NotFound`, `Conflict` when the run before still goes on and runs may not overlap, and what `start`
    raises.
    """
    row = lock(session, name)
    if not row.overlap and (job_id := open_job(session, name)) is not None:
        raise Conflict(f"job {job_id} of {name} is not finished, and its runs may not overlap")
    job = start(session, row)
    moment = clock(session)
    record(session, row, moment, moment, STARTED, f"asked for by {by}", job)
    return job


def runs(
    session: Session, name: str, *, page_size: int = 100, page_token: str | None = None
) -> Page[ScheduleRunRow]:
    """What happened, newest first. Raises `NotFound`."""
    query = select(ScheduleRunRow).where(ScheduleRunRow.schedule == get(session, name).name)
    if (last := after(page_token, int)) is not None:
        query = query.where(ScheduleRunRow.id < last)
    rows = session.scalars(query.order_by(ScheduleRunRow.id.desc()).limit(page_size + 1)).all()
    return cut(rows, page_size, lambda r: r.id)


def last_runs(session: Session, names: Sequence[str]) -> dict[str, ScheduleRunRow]:
    """The newest entry of each; one that has none is not there."""
    newest = (
        select(func.max(ScheduleRunRow.id))
        .where(ScheduleRunRow.schedule.in_(names))
        .group_by(ScheduleRunRow.schedule)
    )
    rows = session.scalars(select(ScheduleRunRow).where(ScheduleRunRow.id.in_(newest)))
    return {row.schedule: row for row in rows}


def when_of(row: ScheduleRow) -> When:
    return When(cron=row.cron, every_s=row.every_s, timezone=row.timezone, start_at=row.start_at)


def open_job(session: Session, name: str) -> int | None:
    """A job of the schedule that is not finished."""
    return session.scalar(
        select(JobRow.id).where(JobRow.schedule == name, JobRow.state.in_(jobs.OPEN_STATES)).limit(1)
    )


def record(
    session: Session,
    row: ScheduleRow,
    due_at: datetime,
    moment: datetime,
    outcome: str,
    reason: str | None,
    job: JobRow | None = None,
) -> ScheduleRunRow:
    """An entry of the history; the oldest goes."""
    entry = ScheduleRunRow(
        schedule=row.name,
        due_at=due_at,
        at=moment,
        outcome=outcome,
        reason=reason,
        job_id=None if job is None else job.id,
    )
    session.add(entry)
    session.flush()
    theirs = select(ScheduleRunRow.id).where(ScheduleRunRow.schedule == row.name)
    oldest = theirs.order_by(ScheduleRunRow.id.desc()).offset(KEPT).limit(1).scalar_subquery()
    old = (ScheduleRunRow.schedule == row.name, ScheduleRunRow.id <= oldest)
    session.execute(delete(ScheduleRunRow).where(*old).execution_options(synchronize_session=False))
    return entry
