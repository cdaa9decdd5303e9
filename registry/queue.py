"""The one queue: everything slow is a task in the registry's own database.

A task is enqueued in the transaction of what it is for. A worker claims it for a lease, extends the
lease with heartbeats, and finishes or fails it. Every claim raises the task's fence, and everything
said about a task must name the fence of the claim: a worker that slept through its lease changes
nothing, it gets `StaleTask`. A lease that runs out gives the task to the next who asks.

These functions commit nothing: a result and what follows from it belong into one transaction.
Fencing follows Kleppmann, "How to do distributed locking" (2016); the claim is one compare-and-set.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, ScalarSelect, Select, and_, func, not_, or_, select, update
from sqlalchemy.orm import Session

from registry.errors import StaleTask
from registry.tables import TaskRow, now

QUEUED = "queued"  # waits for `not_before` and a worker
RUNNING = "running"  # a worker holds it until `lease_until`
DONE = "done"  # finished, `result` holds what came of it
FAILED = "failed"  # every attempt failed, `error` says how the last one did
CANCELLED = "cancelled"  # nobody wants it any more

LEASE_S = 10.0
"""How long a claim holds without a heartbeat: a dead worker is noticed after this."""
MOST_LEASE_S = 60.0
"""Nobody claims for longer."""
TOO_FAR_S = 2 * MOST_LEASE_S
"""A lease that ends later than this was given before the clock was set back. (Not just later than a lease can
be: who looked at the clock and then waited for the database finds leases that were given meanwhile.)"""


class Task(msgspec.Struct, frozen=True):
    """A claimed task, detached from the session."""

    id: int
    kind: str
    subject: str
    fence: int
    attempt: int
    failures: int
    max_attempts: int


_TASK = (
    TaskRow.id,
    TaskRow.kind,
    TaskRow.subject,
    TaskRow.fence,
    TaskRow.attempt,
    TaskRow.failures,
    TaskRow.max_attempts,
)


def task(
    kind: str,
    subject: str,
    not_before: datetime,
    *,
    max_attempts: int = 3,
    priority: int = 0,
    concurrency_key: str | None = None,
    fence: int = 0,
) -> TaskRow:
    """A task to be added in the caller's transaction, for who adds thousands. One that replaces another goes
    on from that one's `fence`, so that no two claims for the same thing have the same."""
    return TaskRow(
        kind=kind,
        subject=subject,
        state=QUEUED,
        priority=priority,
        not_before=not_before,
        max_attempts=max_attempts,
        concurrency_key=concurrency_key,
        fence=fence,
    )


def enqueue(
    session: Session, kind: str, subject: str, *, not_before: datetime | None = None, **more: Any
) -> int:
    """Add a task in the caller's transaction and return its id; `more` as for `task`."""
    row = task(kind, subject, not_before or clock(session), **more)
    session.add(row)
    session.flush()
    return row.id


def enqueue_once(session: Session, kind: str, subject: str, *, max_attempts: int) -> int:
    """The subject's task that waits or runs, or a new one."""
    open_ = and_(TaskRow.kind == kind, TaskRow.state.in_((QUEUED, RUNNING)))
    found = session.scalar(select(TaskRow.id).where(open_, TaskRow.subject == subject).limit(1))
    return found or enqueue(session, kind, subject, max_attempts=max_attempts)


def claim(
    session: Session,
    kinds: Sequence[str],
    worker: str,
    lease_s: float = LEASE_S,
    most_at_once: int | None = None,
) -> Task | None:
    """Take the next task that is due, or one whose lease ran out. None when there is none.

    Of tasks with one concurrency key no more than `most_at_once` run: those above it are left where they are.
    (Two workers that look at the same instant may go one beyond it.)
    """
    moment = clock(session)
    due = and_(TaskRow.state == QUEUED, TaskRow.not_before <= moment)
    mine = and_(TaskRow.kind.in_(kinds), or_(due, _lapsed(moment)), TaskRow.attempt < TaskRow.max_attempts)
    if most_at_once is not None:
        mine = and_(mine, _has_room(moment, most_at_once))
    row = session.execute(
        update(TaskRow)
        .where(TaskRow.id == _first(mine))
        .values(
            state=RUNNING,
            claimed_by=worker,
            lease_until=_until(moment, lease_s),
            fence=TaskRow.fence + 1,
            attempt=TaskRow.attempt + 1,
        )
        .returning(*_TASK)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return None if row is None else Task(*row)


def is_waiting(session: Session, kinds: Sequence[str], most_at_once: int | None = None) -> bool:
    """Whether a claim is worth trying: something is due and may run, or a lease has run out."""
    moment = clock(session)
    due = and_(TaskRow.state == QUEUED, TaskRow.not_before <= moment)
    if most_at_once is not None:
        due = and_(due, _has_room(moment, most_at_once))
    found = select(TaskRow.id).where(TaskRow.kind.in_(kinds), or_(due, _lapsed(moment))).limit(1)
    return session.scalar(found) is not None


def lost(session: Session, kinds: Sequence[str]) -> Task | None:
    """A task whose last attempt was lost with its worker: who has something to lock before it is told may
    look here what."""
    row = session.execute(select(*_TASK).where(_is_lost(session, kinds)).limit(1)).one_or_none()
    return None if row is None else Task(*row)


def expired(session: Session, kinds: Sequence[str], task_id: int | None = None) -> list[Task]:
    """Fail a task whose last attempt was lost with its worker, `task_id` or any, and return it: what it was
    for has to be told, in the same transaction. One at a time: a transaction that told two models could
    deadlock."""
    which = _is_lost(session, kinds)
    if task_id is not None:
        which = and_(which, TaskRow.id == task_id)
    rows = session.execute(
        update(TaskRow)
        .where(TaskRow.id == _first(which))
        .values(state=FAILED, error="the worker died at every attempt", finished_at=now())
        .returning(*_TASK)
        .execution_options(synchronize_session=False)
    ).all()
    return [Task(*row) for row in rows]


def heartbeat(session: Session, task_id: int, fence: int, lease_s: float = LEASE_S) -> None:
    """Extend the lease. Raises `StaleTask` when the task is no longer this claim's."""
    _compare_and_set(session, task_id, fence, {"lease_until": _until(clock(session), lease_s)})


def finish(session: Session, task_id: int, fence: int, result: dict[str, Any] | None = None) -> None:
    """Mark the task done. Raises `StaleTask` when the task is no longer this claim's."""
    _compare_and_set(
        session, task_id, fence, {"state": DONE, "result": result, "finished_at": now(), "lease_until": None}
    )


def fail(session: Session, task_id: int, fence: int, error: str, retry_in_s: float | None = None) -> bool:
    """Give the task back for another attempt after `retry_in_s`, or for good when that is None or no
    attempt is left. True when it will be tried again. Raises `StaleTask` like `finish`."""
    found = select(TaskRow.attempt, TaskRow.max_attempts).where(TaskRow.id == task_id)
    attempt, most = session.execute(found).one_or_none() or (0, 0)
    again = retry_in_s is not None and attempt < most
    values: dict[str, Any] = {"state": FAILED, "finished_at": now()}
    if retry_in_s is not None and again:
        values = {"state": QUEUED, "not_before": clock(session) + timedelta(seconds=retry_in_s)}
    values |= {"error": error, "failures": TaskRow.failures + 1, "lease_until": None}
    _compare_and_set(session, task_id, fence, values)
    return again


def release(session: Session, task_id: int, fence: int, in_s: float = 0.0) -> None:
    """Put a claimed task back as if it had not been claimed, to be taken after `in_s`: the worker is shutting
    down, or what the task needs is not there yet."""
    _compare_and_set(
        session,
        task_id,
        fence,
        {
            "state": QUEUED,
            "lease_until": None,
            "claimed_by": None,
            "attempt": TaskRow.attempt - 1,
            "not_before": clock(session) + timedelta(seconds=in_s),
        },
    )


def cancel(session: Session, kind: str, subject: str) -> None:
    """End the subject's tasks that are not finished; a worker that holds one learns it by `StaleTask`."""
    session.execute(
        update(TaskRow)
        .where(TaskRow.kind == kind, TaskRow.subject == subject, TaskRow.state.in_((QUEUED, RUNNING)))
        .values(state=CANCELLED, fence=TaskRow.fence + 1, lease_until=None, finished_at=now())
        .execution_options(synchronize_session=False)
    )


def cancel_all(session: Session, task_ids: Select[Any]) -> None:
    """`cancel` for tasks that the caller knows by id."""
    session.execute(
        update(TaskRow)
        .where(TaskRow.id.in_(task_ids.scalar_subquery()), TaskRow.state.in_((QUEUED, RUNNING)))
        .values(state=CANCELLED, fence=TaskRow.fence + 1, lease_until=None, finished_at=now())
        .execution_options(synchronize_session=False)
    )


def depth(session: Session, kinds: Sequence[str]) -> int:
    """How many tasks wait or run."""
    return session.execute(
        select(func.count()).where(TaskRow.kind.in_(kinds), TaskRow.state.in_((QUEUED, RUNNING)))
    ).scalar_one()


def _until(moment: datetime, lease_s: float) -> datetime:
    assert lease_s <= MOST_LEASE_S, lease_s
    return moment + timedelta(seconds=lease_s)


def _lapsed(moment: datetime) -> ColumnElement[bool]:
    too_far = moment + timedelta(seconds=TOO_FAR_S)
    return and_(TaskRow.state == RUNNING, or_(TaskRow.lease_until < moment, TaskRow.lease_until > too_far))


def _is_lost(session: Session, kinds: Sequence[str]) -> ColumnElement[bool]:
    return and_(TaskRow.kind.in_(kinds), _lapsed(clock(session)), TaskRow.attempt >= TaskRow.max_attempts)


def _has_room(moment: datetime, most: int) -> ColumnElement[bool]:
    running = (
        select(TaskRow.concurrency_key)
        .where(TaskRow.state == RUNNING, not_(_lapsed(moment)), TaskRow.concurrency_key.is_not(None))
        .group_by(TaskRow.concurrency_key)
        .having(func.count() >= most)
    )
    return or_(TaskRow.concurrency_key.is_(None), TaskRow.concurrency_key.not_in(running))


def _first(which: ColumnElement[bool]) -> ScalarSelect[int]:
    return (
        select(TaskRow.id)
        .where(TaskRow.state.in_((QUEUED, RUNNING)), which)
        .order_by(TaskRow.priority.desc(), TaskRow.attempt, TaskRow.id)  # who lost a worker lets others by
        .limit(1)
        .with_for_update(skip_locked=True)  # no effect on SQLite, where writers queue up anyway
        .scalar_subquery()
    )


def _compare_and_set(session: Session, task_id: int, fence: int, values: dict[str, Any]) -> None:
    changed = session.execute(
        update(TaskRow)
        .where(TaskRow.id == task_id, TaskRow.fence == fence, TaskRow.state == RUNNING)
        .values(values)
        .returning(TaskRow.id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if changed is None:
        raise StaleTask(task_id)


def clock(session: Session) -> datetime:
    """The time all workers agree on: the database's on PostgreSQL, this host's on SQLite."""
    if session.get_bind().dialect.name == "postgresql":
        moment: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
        return moment.astimezone(UTC)
    return now()
