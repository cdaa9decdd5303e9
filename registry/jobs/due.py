"""What happens when a schedule's run is due: it starts, is skipped, or was missed.

`tick` decides about one schedule: under its lock and in one transaction it starts the job, writes what
happened into the history and moves `next_at` on. So each moment has one entry and at most one job, however
many workers tick: `next_at` moves forward, unless the clock itself was set back.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, exists, or_, select
from sqlalchemy.orm import Session

from registry.errors import Invalid, TriviumError
from registry.jobs import jobs, recurrence, schedules
from registry.jobs.recurrence import When
from registry.jobs.schedules import Start
from registry.jobs.tables import JobRow, ScheduleRow, ScheduleRunRow
from registry.queue import clock

LATE = timedelta(minutes=1)
"""A run that is at most so late is started all the same: a restart of the workers is no missed run."""
CATCH_UP = 100
"""So many missed runs are made up for, the newest ones."""
COUNTED = 1000
"""Missed runs are counted so far."""


def is_due(session: Session, *, moment: datetime | None = None) -> bool:
    """Whether a `tick` has something to do."""
    return session.scalar(select(ScheduleRow.name).where(_due(moment or clock(session))).limit(1)) is not None


def tick(session: Session, start: Start, *, moment: datetime | None = None) -> list[ScheduleRunRow] | None:
    """Decide about the schedule that has been due longest: the new entries of its history, or None when none
    is due. Those that another worker holds at this moment are left to it.

    A run that is due starts. Unless runs may overlap, none does while a job of the schedule is not finished:
    it is skipped, or waits with `catch_up`. What was due more than `LATE` ago, or is followed by one that
    is due too, was missed: one entry says how many were skipped, or, with `catch_up`, each is started, the
    oldest first, one in a tick.
    """
    moment = moment or clock(session)
    query = select(ScheduleRow).where(_due(moment)).order_by(ScheduleRow.next_at).limit(1)
    row = session.scalar(query.with_for_update(skip_locked=True))
    if row is None:
        return None
    assert row.next_at is not None
    when, due_at = schedules.when_of(row), row.next_at
    try:
        if due_at > moment:
            return [_set_back(session, row, when, moment)]
        return (_catch_up if row.catch_up else _keep_up)(session, row, when, due_at, moment, start)
    except Invalid as error:  # a time zone that this host has not: the others must not wait for it
        row.next_at = None
        return [schedules.record(session, row, due_at, moment, schedules.FAILED, str(error))]


def _due(moment: datetime) -> ColumnElement[bool]:
    """Its moment has come, or the clock was set back; it is not paused, and does not wait for the run before
    in order to make up for missed ones."""
    busy = exists().where(JobRow.schedule == ScheduleRow.name, JobRow.state.in_(jobs.OPEN_STATES))
    come = and_(ScheduleRow.next_at <= moment, ~and_(ScheduleRow.catch_up, ~ScheduleRow.overlap, busy))
    newest = select(ScheduleRunRow.at).where(ScheduleRunRow.schedule == ScheduleRow.name)
    ahead = newest.order_by(ScheduleRunRow.id.desc()).limit(1).scalar_subquery() > moment + LATE
    return and_(~ScheduleRow.paused, or_(come, and_(ScheduleRow.next_at > moment, ahead)))


def _set_back(session: Session, row: ScheduleRow, when: When, moment: datetime) -> ScheduleRunRow:
    """The clock was ahead, and `next_at` may be years away: begin again, not with a run there was."""
    had = select(ScheduleRunRow.due_at).where(
        ScheduleRunRow.schedule == row.name, ScheduleRunRow.outcome == schedules.STARTED
    )
    done, due_at = set(session.scalars(had)), row.next_at or moment
    row.next_at = next((m for m in recurrence.after(when, moment) if m not in done), None)
    reason = "the clock was set back; when the next run is was worked out again"
    return schedules.record(session, row, due_at, moment, schedules.SKIPPED, reason)


def _keep_up(
    session: Session, row: ScheduleRow, when: When, due_at: datetime, moment: datetime, start: Start
) -> list[ScheduleRunRow]:
    """Start the newest run that is due, unless it is too late for it. All before it were missed."""
    in_time = moment - LATE
    runs = [due_at, *recurrence.between(when, max(due_at, in_time), moment, COUNTED)]
    run_at = runs[-1] if runs[-1] >= in_time else None
    row.next_at = recurrence.following(when, moment)
    made = _missed(session, row, when, due_at, run_at or moment + recurrence.INSTANT, moment)
    if run_at is None:
        return made
    if not row.overlap and (job_id := schedules.open_job(session, row.name)) is not None:
        reason = f"job {job_id}, the run before, was not finished"
        return [*made, schedules.record(session, row, run_at, moment, schedules.SKIPPED, reason)]
    return [*made, _run(session, row, run_at, moment, start)]


def _catch_up(
    session: Session, row: ScheduleRow, when: When, due_at: datetime, moment: datetime, start: Start
) -> list[ScheduleRunRow]:
    """Start the oldest run that is due."""
    if not row.overlap and schedules.open_job(session, row.name) is not None:
        return []  # another worker started one between our look and our lock
    made = []
    if len(recurrence.between(when, due_at, moment, CATCH_UP)) == CATCH_UP:  # and `due_at` itself
        oldest = recurrence.newest(when, moment, CATCH_UP) or due_at
        made = _missed(session, row, when, due_at, oldest, moment)
        due_at = oldest
    row.next_at = recurrence.following(when, due_at)
    return [*made, _run(session, row, due_at, moment, start)]


def _missed(
    session: Session, row: ScheduleRow, when: When, due_at: datetime, end: datetime, moment: datetime
) -> list[ScheduleRunRow]:
    """One entry for the runs from `due_at` until before `end`, or none when there is none."""
    if due_at >= end:
        return []
    count = 1 + len([m for m in recurrence.between(when, due_at, end, COUNTED - 1) if m < end])
    missed = "1 run was" if count == 1 else f"{count}{' or more' if count == COUNTED else ''} runs were"
    reason = f"{missed} missed: no worker was there in time"
    return [schedules.record(session, row, due_at, moment, schedules.SKIPPED, reason)]


def _run(
    session: Session, row: ScheduleRow, due_at: datetime, moment: datetime, start: Start
) -> ScheduleRunRow:
    try:
        with session.begin_nested():
            job = start(session, row)
    except TriviumError as error:
        return schedules.record(session, row, due_at, moment, schedules.FAILED, str(error))
    return schedules.record(session, row, due_at, moment, schedules.STARTED, None, job)
