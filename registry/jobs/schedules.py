"""Schedules: rules that start a job repeatedly. Records, edits, and the runs that are due.

`tick` processes one schedule: under its lock and in one transaction it starts the job, adds the entry of the
history and advances `next_at`. So each due time has one entry and at most one job, however many workers call
`tick`: `next_at` only advances, unless the clock was set back.

This module does not build jobs from a schedule's `job`: the caller passes a `StartJob`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, delete, exists, false, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from registry.errors import Conflict, Invalid, NotFound, TriviumError
from registry.jobs import jobs
from registry.jobs.recurrence import (
    INSTANT,
    Recurrence,
    first_run,
    next_run,
    nth_last_run,
    runs_after,
    runs_between,
)
from registry.jobs.tables import JobRow, ScheduleRow, ScheduleRunRow
from registry.names import check_name
from registry.pages import Page, decode_token, make_page
from registry.queue import clock
from registry.vocabulary import RunOutcome

STARTED: RunOutcome = "started"
SKIPPED: RunOutcome = "skipped"
FAILED: RunOutcome = "failed"

MAX_LATE = timedelta(minutes=1)
"""Runs up to this late still start, so a worker restart does not miss one."""
MAX_CATCH_UP_RUNS = 100
"""With `catch_up`, the newest missed runs up to this number are started."""
MAX_COUNTED_RUNS = 1000
"""Missed runs are counted up to this number."""
MAX_EDITS = 100
"""Edits of a schedule that its record lists."""
MAX_HISTORY_ENTRIES = 1000
"""Entries of a schedule's history; older ones are deleted."""

_IS_OPEN = JobRow.state.in_(jobs.OPEN_STATES)

StartJob = Callable[[Session, ScheduleRow], JobRow]
"""Creates the schedule's job in the caller's transaction. Raises a `TriviumError` if it cannot."""


class NewSchedule(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    job: dict[str, Any]
    recurrence: Recurrence
    catch_up: bool = False
    overlap: bool = False
    paused: bool = False


def create(session: Session, new: NewSchedule, *, by: str, moment: datetime | None = None) -> ScheduleRow:
    """Add a schedule. Raises `Invalid` with the field, `Conflict` if the name is in use."""
    check_name(new.name)
    moment = moment or clock(session)
    first = first_run(new.recurrence, moment)
    row = ScheduleRow(
        name=new.name,
        job=new.job,
        cron=new.recurrence.cron,
        every_s=new.recurrence.every_s,
        timezone=new.recurrence.timezone,
        start_at=first.start_at,
        has_fixed_start=new.recurrence.start_at is not None or new.recurrence.start_in_s is not None,
        catch_up=new.catch_up,
        overlap=new.overlap,
        paused=new.paused,
        next_at=first.run_at,
        created_at=moment,
        created_by=by,
    )
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError as error:
        raise Conflict(f"schedule {new.name!r} already exists; change or delete it") from error
    return row


def get(session: Session, name: str) -> ScheduleRow:
    """Raises `NotFound`."""
    row = session.get(ScheduleRow, name)
    if row is None:
        raise NotFound("schedule", name)
    return row


def lock(session: Session, name: str) -> ScheduleRow:
    """Return the schedule, locked until the transaction ends. Raises `NotFound`."""
    row = session.get(ScheduleRow, name, with_for_update=True, populate_existing=True)
    if row is None:
        raise NotFound("schedule", name)
    return row


def search(
    session: Session,
    *,
    models: Collection[str] | None = None,
    model_paths: Mapping[str, Sequence[str]],
    page_size: int = 100,
    page_token: str | None = None,
) -> Page[ScheduleRow]:
    """Return a page of schedules by name. `models` restricts it to schedules of these models.

    `model_paths`: by job kind, the keys that lead to the model's name in `job`. Schedules of other kinds are
    left out of a restricted list.
    """
    query = select(ScheduleRow).order_by(ScheduleRow.name).limit(page_size + 1)
    if (last := decode_token(page_token, str)) is not None:
        query = query.where(ScheduleRow.name > last)
    if models is not None:
        is_of_models = [
            and_(
                ScheduleRow.job["kind"].as_string() == kind,
                ScheduleRow.job[tuple(path)].as_string().in_(models),
            )
            for kind, path in model_paths.items()
        ]
        query = query.where(or_(false(), *is_of_models))
    return make_page(list(session.scalars(query)), page_size, lambda s: s.name)


def edit(
    session: Session, name: str, changes: dict[str, Any], *, by: str, moment: datetime | None = None
) -> ScheduleRow:
    """Apply `changes`: fields of the schedule and of its `Recurrence`; None changes nothing.

    Setting one of `cron` and `every_s` removes the other. A change of the recurrence is counted from now, or
    from the start that was set explicitly. Times during a pause are never due. Runs that were due and had not
    started before a pause or a change of the recurrence get one entry in the history. A value that is already
    set changes nothing. `edits` of the row records who changed which fields.

    Raises `NotFound`, `Invalid`.
    """
    row = lock(session, name)
    moment = moment or clock(session)
    current = recurrence_of(row)
    rule_changes = {k: v for k, v in changes.items() if k in Recurrence.__struct_fields__ and v is not None}
    if all(getattr(current, field) == value for field, value in rule_changes.items()):
        rule_changes = {}
    pauses = changes.get("paused") is True and not row.paused
    resumes = changes.get("paused") is False and row.paused
    if (pauses or rule_changes) and not row.paused and row.next_at is not None:
        action = "paused" if pauses else "changed"
        reason = f"not started before the schedule was {action}"
        _record_missed(session, row, current, row.next_at, moment + INSTANT, moment, reason)
    changed = list(rule_changes)
    for field in ("job", "catch_up", "overlap", "paused"):
        if changes.get(field) is not None and changes[field] != getattr(row, field):
            setattr(row, field, changes[field])
            changed.append(field)
    if changed:
        entry = {"at": moment.isoformat(), "by": by, "fields": sorted(changed)}
        row.edits = _newest_edits([*row.edits, entry])
    if rule_changes:
        _edit_recurrence(row, rule_changes, moment)
    elif (pauses or resumes) and row.next_at is not None and row.next_at <= moment:
        row.next_at = next_run(current, moment)
    session.flush()
    return row


def _edit_recurrence(row: ScheduleRow, changes: dict[str, Any], moment: datetime) -> None:
    changes_interval = bool({"cron", "every_s"} & changes.keys())
    fields: dict[str, Any] = {"timezone": row.timezone}
    if not changes_interval:
        fields |= {"cron": row.cron, "every_s": row.every_s}
    if {"start_at", "start_in_s"} & changes.keys():
        row.has_fixed_start = True
    elif row.has_fixed_start or not changes_interval:
        fields |= {"start_at": row.start_at}
    rule = Recurrence(**{**fields, **changes})
    # `start_in_s` has set the time of the first run itself, which `start_at` alone does not express
    keeps_first_run = row.next_at == row.start_at and row.start_at > moment and "start_at" in fields
    row.start_at, next_at = first_run(rule, moment)
    row.next_at = row.start_at if keeps_first_run else next_at
    row.cron, row.every_s, row.timezone = rule.cron, rule.every_s, rule.timezone


def acting_name(row: ScheduleRow) -> str:
    """Return `created_by` of the schedule's jobs: its creator, with the last editor of the job."""
    edit = _last_job_edit(row.edits)
    if edit is None or edit["by"] == row.created_by:
        return row.created_by
    return f"{row.created_by}, job edited by {edit['by']}"


def _newest_edits(edits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the newest edits, and the last edit of the job, which `acting_name` requires."""
    newest, job_edit = edits[-MAX_EDITS:], _last_job_edit(edits)
    return newest if job_edit is None or job_edit in newest else [job_edit, *newest]


def _last_job_edit(edits: list[dict[str, Any]]) -> dict[str, Any] | None:
    return next((edit for edit in reversed(edits) if "job" in edit["fields"]), None)


def remove(session: Session, name: str) -> None:
    """Delete the schedule and its history. Its jobs stay. Raises `NotFound`."""
    session.delete(lock(session, name))


def run_now(session: Session, name: str, start_job: StartJob, *, by: str) -> JobRow:
    """Start the schedule's job now, also if it is paused. The next run is not affected.

    Raises `NotFound`, `Conflict` if a job of the schedule is not finished and runs may not overlap, and the
    errors of `start_job`.
    """
    row = lock(session, name)
    if not row.overlap and (job_id := open_job(session, row)) is not None:
        raise Conflict(f"job {job_id} of schedule {name} is not finished, and its runs may not overlap")
    job = _start_job(session, row, start_job)
    moment = clock(session)
    name = acting_name(row)
    reason = f"requested by {by}" + ("" if name == row.created_by else f", in the name of {name}")
    record(session, row, moment, moment, STARTED, reason, job)
    return job


def runs(
    session: Session, name: str, *, page_size: int = 100, page_token: str | None = None
) -> Page[ScheduleRunRow]:
    """Return a page of the history, newest first. Raises `NotFound`."""
    query = select(ScheduleRunRow).where(ScheduleRunRow.schedule == get(session, name).name)
    if (last := decode_token(page_token, int)) is not None:
        query = query.where(ScheduleRunRow.id < last)
    rows = session.scalars(query.order_by(ScheduleRunRow.id.desc()).limit(page_size + 1)).all()
    return make_page(rows, page_size, lambda r: r.id)


def last_runs(session: Session, names: Sequence[str]) -> dict[str, ScheduleRunRow]:
    """Return the newest history entry by schedule. Schedules without a history are left out."""
    newest = (
        select(func.max(ScheduleRunRow.id))
        .where(ScheduleRunRow.schedule.in_(names))
        .group_by(ScheduleRunRow.schedule)
    )
    rows = session.scalars(select(ScheduleRunRow).where(ScheduleRunRow.id.in_(newest)))
    return {row.schedule: row for row in rows}


def recurrence_of(row: ScheduleRow) -> Recurrence:
    return Recurrence(cron=row.cron, every_s=row.every_s, timezone=row.timezone, start_at=row.start_at)


def open_job(session: Session, row: ScheduleRow) -> int | None:
    """Return the id of an unfinished job of the schedule, or None."""
    is_open = (JobRow.schedule == row.name, JobRow.created_at >= row.created_at, _IS_OPEN)
    return session.scalar(select(JobRow.id).where(*is_open).limit(1))


def _start_job(session: Session, row: ScheduleRow, start_job: StartJob) -> JobRow:
    """Start the job. It is never older than the schedule, whatever the clock of this host.

    `created_at` distinguishes it from jobs of a deleted schedule with the same name.
    """
    job = start_job(session, row)
    job.created_at = max(job.created_at, row.created_at)
    return job


def record(
    session: Session,
    row: ScheduleRow,
    due_at: datetime,
    moment: datetime,
    outcome: RunOutcome,
    reason: str | None,
    job: JobRow | None = None,
) -> ScheduleRunRow:
    """Add an entry to the history and delete entries beyond `MAX_HISTORY_ENTRIES`."""
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
    ids = select(ScheduleRunRow.id).where(ScheduleRunRow.schedule == row.name)
    newest_to_delete = ids.order_by(ScheduleRunRow.id.desc()).offset(MAX_HISTORY_ENTRIES).limit(1)
    surplus = (ScheduleRunRow.schedule == row.name, ScheduleRunRow.id <= newest_to_delete.scalar_subquery())
    session.execute(delete(ScheduleRunRow).where(*surplus).execution_options(synchronize_session=False))
    return entry


def is_due(session: Session, *, moment: datetime | None = None) -> bool:
    """Report whether `tick` has a schedule to process."""
    query = select(ScheduleRow.name).where(_is_due(moment or clock(session))).limit(1)
    return session.scalar(query) is not None


def tick(
    session: Session, start_job: StartJob, *, moment: datetime | None = None
) -> list[ScheduleRunRow] | None:
    """Process the schedule that has been due longest. Return its new history entries, or None if none is due.

    Schedules that another worker has locked are skipped.

    A due run starts its job. Unless runs may overlap, no job starts while a job of the schedule is open: the
    run is skipped, or waits with `catch_up`. Runs that were due more than `MAX_LATE` ago, and runs followed
    by another due run, are missed. One entry counts the missed runs; with `catch_up` they are started
    instead, the oldest first, one per call.
    """
    moment = moment or clock(session)
    query = select(ScheduleRow).where(_is_due(moment)).order_by(ScheduleRow.next_at).limit(1)
    row = session.scalar(query.with_for_update(skip_locked=True))
    if row is None:
        return None
    assert row.next_at is not None
    rule, due_at = recurrence_of(row), row.next_at
    try:
        if due_at > moment:
            return [_restart_after_clock_change(session, row, rule, moment)]
        start_due = _start_oldest if row.catch_up else _start_newest
        return start_due(session, row, rule, due_at, moment, start_job)
    except Invalid as error:  # this host lacks the time zone: other schedules must not be blocked by it
        row.next_at = None
        return [record(session, row, due_at, moment, FAILED, str(error))]


def _is_due(moment: datetime) -> ColumnElement[bool]:
    """True for schedules whose time has come or whose clock was set back, except paused ones.

    A schedule with `catch_up` and without `overlap` is not due while one of its jobs is open.
    """
    is_of_schedule = (JobRow.schedule == ScheduleRow.name, JobRow.created_at >= ScheduleRow.created_at)
    has_open_job = exists().where(*is_of_schedule, _IS_OPEN)
    waits_for_job = and_(ScheduleRow.catch_up, ~ScheduleRow.overlap, has_open_job)
    has_come = and_(ScheduleRow.next_at <= moment, ~waits_for_job)
    newest_entry = select(ScheduleRunRow.at).where(ScheduleRunRow.schedule == ScheduleRow.name)
    newest_entry = newest_entry.order_by(ScheduleRunRow.id.desc()).limit(1)
    is_from_future = newest_entry.scalar_subquery() > moment + MAX_LATE
    return and_(~ScheduleRow.paused, or_(has_come, and_(ScheduleRow.next_at > moment, is_from_future)))


def _restart_after_clock_change(
    session: Session, row: ScheduleRow, rule: Recurrence, moment: datetime
) -> ScheduleRunRow:
    """Recompute `next_at` from now, skipping runs that were already started.

    The clock was ahead, so `next_at` may be years away.
    """
    query = select(ScheduleRunRow.due_at).where(
        ScheduleRunRow.schedule == row.name, ScheduleRunRow.outcome == STARTED
    )
    started, due_at = set(session.scalars(query)), row.next_at or moment
    row.next_at = next((m for m in runs_after(rule, moment) if m not in started), None)
    reason = "the clock was set back; the time of the next run was computed again"
    return record(session, row, due_at, moment, SKIPPED, reason)


def _start_newest(
    session: Session,
    row: ScheduleRow,
    rule: Recurrence,
    due_at: datetime,
    moment: datetime,
    start_job: StartJob,
) -> list[ScheduleRunRow]:
    """Start the newest due run unless it is later than `MAX_LATE`. All runs before it are missed."""
    in_time = moment - MAX_LATE
    due_runs = [due_at, *runs_between(rule, max(due_at, in_time), moment, MAX_COUNTED_RUNS)]
    run_at = due_runs[-1] if due_runs[-1] >= in_time else None
    row.next_at = next_run(rule, moment)
    entries = _record_missed(session, row, rule, due_at, run_at or moment + INSTANT, moment)
    if run_at is None:
        return entries
    if not row.overlap and (job_id := open_job(session, row)) is not None:
        reason = f"job {job_id} of the previous run was not finished"
        return [*entries, record(session, row, run_at, moment, SKIPPED, reason)]
    return [*entries, _start(session, row, run_at, moment, start_job)]


def _start_oldest(
    session: Session,
    row: ScheduleRow,
    rule: Recurrence,
    due_at: datetime,
    moment: datetime,
    start_job: StartJob,
) -> list[ScheduleRunRow]:
    """Start the oldest due run; runs beyond the newest `MAX_CATCH_UP_RUNS` are missed."""
    if not row.overlap and open_job(session, row) is not None:
        return []  # another worker started a job between this worker's query and its lock
    entries = []
    if len(runs_between(rule, due_at, moment, MAX_CATCH_UP_RUNS)) == MAX_CATCH_UP_RUNS:  # without `due_at`
        oldest = nth_last_run(rule, moment, MAX_CATCH_UP_RUNS) or due_at
        entries = _record_missed(session, row, rule, due_at, oldest, moment)
        due_at = oldest
    row.next_at = next_run(rule, due_at)
    return [*entries, _start(session, row, due_at, moment, start_job)]


def _record_missed(
    session: Session,
    row: ScheduleRow,
    rule: Recurrence,
    due_at: datetime,
    end: datetime,
    moment: datetime,
    reason: str = "missed: no worker was running when they were due",
) -> list[ScheduleRunRow]:
    """Add one entry for the runs from `due_at` to before `end`, if there are any."""
    if due_at >= end:
        return []
    count = 1 + len([m for m in runs_between(rule, due_at, end, MAX_COUNTED_RUNS - 1) if m < end])
    missed = (
        "1 run was" if count == 1 else f"{count}{' or more' if count == MAX_COUNTED_RUNS else ''} runs were"
    )
    return [record(session, row, due_at, moment, SKIPPED, f"{missed} {reason}")]


def _start(
    session: Session, row: ScheduleRow, due_at: datetime, moment: datetime, start_job: StartJob
) -> ScheduleRunRow:
    try:
        with session.begin_nested():
            job = _start_job(session, row, start_job)
    except TriviumError as error:
        return record(session, row, due_at, moment, FAILED, str(error))
    name = acting_name(row)
    reason = None if name == row.created_by else f"in the name of {name}"
    return record(session, row, due_at, moment, STARTED, reason, job)
