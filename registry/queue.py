"""Task queue in the registry's database.

Tasks are inserted in the same transaction as the row they belong to. A worker claims a task for a lease,
extends the lease with heartbeats, and finishes or fails the task. Each claim increments the task's fence.
Updates must pass the fence of their claim; an outdated fence raises `StaleTask`, so a worker whose lease
expired cannot change anything. Tasks with an expired lease can be claimed by other workers.

None of these functions commits: the result of a task and the changes that follow from it belong into one
transaction. A claim is one compare-and-set. Fencing follows Kleppmann, "How to do distributed locking"
(2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    ScalarSelect,
    Select,
    String,
    and_,
    cast,
    func,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session

from registry.errors import StaleTask
from registry.tables import TaskRow, now

QUEUED = "queued"  # waits until `not_before`, then for a worker
RUNNING = "running"  # a worker holds it until `lease_until`
DONE = "done"  # finished; `result` holds the result
FAILED = "failed"  # every attempt failed; `error` is the error of the last one
CANCELLED = "cancelled"  # its result is not needed any more

BUILD_LEASE_S = 10.0
"""Lease of builds and exports: a dead server's task is claimed again after this time without a heartbeat."""
JOB_LEASE_S = 5.0
"""Lease of the tasks of jobs: a dead worker's partitions are claimed again after this time."""
MAX_LEASE_S = 60.0
"""Upper bound of any lease."""
MAX_LEASE_AHEAD_S = 2 * MAX_LEASE_S
"""A lease that ends later than this from now was set before the clock was set back, and counts as expired.
The bound is above `MAX_LEASE_S` because a transaction that read the clock and then waited for a lock sees
leases that began later than its own time."""


class ClaimedTask(msgspec.Struct, frozen=True):
    """A claimed task, detached from the session.

    `attempt` counts claims, `failures` the attempts that ended with an error. In the other ones the worker
    died. Both count towards `max_attempts`.
    """

    id: int
    kind: str
    subject: str
    fence: int
    attempt: int
    failures: int
    max_attempts: int

    @property
    def deaths(self) -> int:
        """Number of workers that died while they ran the task, for a task whose lease expired."""
        return self.attempt - self.failures


_CLAIMED_COLUMNS = (
    TaskRow.id,
    TaskRow.kind,
    TaskRow.subject,
    TaskRow.fence,
    TaskRow.attempt,
    TaskRow.failures,
    TaskRow.max_attempts,
)


def new_task(
    kind: str,
    subject: str,
    not_before: datetime,
    *,
    max_attempts: int,
    priority: int = 0,
    concurrency_key: str | None = None,
    fence: int = 0,
) -> TaskRow:
    """Build a task row without adding it, for callers that insert many.

    A task that replaces another one passes the `fence` of that one, so that no two claims for the same
    subject have the same fence.
    """
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
    session: Session,
    kind: str,
    subject: str,
    *,
    max_attempts: int,
    not_before: datetime | None = None,
    **options: Any,
) -> int:
    """Add a task in the caller's transaction and return its id. `options` are those of `new_task`."""
    row = new_task(kind, subject, not_before or clock(session), max_attempts=max_attempts, **options)
    session.add(row)
    session.flush()
    return row.id


def enqueue_once(session: Session, kind: str, subject: str, *, max_attempts: int, priority: int = 0) -> int:
    """Return the id of the subject's queued or running task, or enqueue a new one."""
    is_open = and_(TaskRow.kind == kind, TaskRow.state.in_((QUEUED, RUNNING)))
    open_id = session.scalar(select(TaskRow.id).where(is_open, TaskRow.subject == subject).limit(1))
    return open_id or enqueue(session, kind, subject, max_attempts=max_attempts, priority=priority)


def claim(
    session: Session,
    kinds: Sequence[str],
    worker: str,
    lease_s: float = BUILD_LEASE_S,
    max_per_key: int | None = None,
) -> ClaimedTask | None:
    """Claim the next task that is due or whose lease expired, or return None.

    With `max_per_key`, at most that many tasks with the same concurrency key run at once; further tasks stay
    queued. Two workers that claim at the same instant may exceed the bound by one.
    """
    moment = clock(session)
    is_due = and_(TaskRow.state == QUEUED, TaskRow.not_before <= moment)
    is_claimable = and_(
        TaskRow.kind.in_(kinds), or_(is_due, _lease_expired(moment)), TaskRow.attempt < TaskRow.max_attempts
    )
    if max_per_key is not None:
        is_claimable = and_(is_claimable, _below_key_limit(moment, max_per_key))
    row = session.execute(
        update(TaskRow)
        .where(TaskRow.id == _first(is_claimable))
        .values(
            state=RUNNING,
            claimed_by=worker,
            lease_until=_lease_end(moment, lease_s),
            fence=TaskRow.fence + 1,
            attempt=TaskRow.attempt + 1,
        )
        .returning(*_CLAIMED_COLUMNS)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return None if row is None else ClaimedTask(*row)


def has_claimable(session: Session, kinds: Sequence[str], max_per_key: int | None = None) -> bool:
    """Report whether a claim is worth trying: a task is due and may run, or a lease expired."""
    moment = clock(session)
    is_due = and_(TaskRow.state == QUEUED, TaskRow.not_before <= moment)
    if max_per_key is not None:
        is_due = and_(is_due, _below_key_limit(moment, max_per_key))
    query = select(TaskRow.id).where(TaskRow.kind.in_(kinds), or_(is_due, _lease_expired(moment))).limit(1)
    return session.scalar(query) is not None


def peek_lost(session: Session, kinds: Sequence[str]) -> ClaimedTask | None:
    """Return a task whose lease expired after its last attempt, or None.

    Callers use it to lock the task's job before they call `fail_lost`.
    """
    query = select(*_CLAIMED_COLUMNS).where(_is_lost(session, kinds)).limit(1)
    row = session.execute(query).one_or_none()
    return None if row is None else ClaimedTask(*row)


def fail_lost(session: Session, kinds: Sequence[str], task_id: int | None = None) -> ClaimedTask | None:
    """Mark one task as failed whose lease expired after its last attempt, and return it, or None.

    `task_id` restricts the search to one task. The caller records the failure of the task's subject in the
    same transaction. Only one task per call: a transaction that locks two models could deadlock.
    """
    condition = _is_lost(session, kinds)
    if task_id is not None:
        condition = and_(condition, TaskRow.id == task_id)
    row = session.execute(
        update(TaskRow)
        .where(TaskRow.id == _first(condition))
        .values(
            state=FAILED,
            error=cast(TaskRow.attempt - TaskRow.failures, String) + " workers died while they ran it",
            finished_at=now(),
        )
        .returning(*_CLAIMED_COLUMNS)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return None if row is None else ClaimedTask(*row)


def heartbeat(session: Session, task_id: int, fence: int, lease_s: float = BUILD_LEASE_S) -> None:
    """Extend the lease. Raises `StaleTask` if another claim holds the task."""
    _compare_and_set(session, task_id, fence, {"lease_until": _lease_end(clock(session), lease_s)})


def finish(session: Session, task_id: int, fence: int, result: dict[str, Any] | None = None) -> None:
    """Mark the task as done. Raises `StaleTask` if another claim holds the task."""
    _compare_and_set(
        session, task_id, fence, {"state": DONE, "result": result, "finished_at": now(), "lease_until": None}
    )


def fail(session: Session, task_id: int, fence: int, error: str, retry_in_s: float | None = None) -> bool:
    """Count a failed attempt: queue the task again after `retry_in_s`, or mark it as failed.

    The task fails permanently if `retry_in_s` is None or its last attempt was used. Returns whether it will
    be retried. Raises `StaleTask` if another claim holds the task.
    """
    query = select(TaskRow.attempt, TaskRow.max_attempts).where(TaskRow.id == task_id)
    attempt, max_attempts = session.execute(query).one_or_none() or (0, 0)
    will_retry = retry_in_s is not None and attempt < max_attempts
    values: dict[str, Any] = {"state": FAILED, "finished_at": now()}
    if retry_in_s is not None and will_retry:
        values = {"state": QUEUED, "not_before": clock(session) + timedelta(seconds=retry_in_s)}
    values |= {"error": error, "failures": TaskRow.failures + 1, "lease_until": None}
    _compare_and_set(session, task_id, fence, values)
    return will_retry


def release(session: Session, task_id: int, fence: int, in_s: float = 0.0) -> None:
    """Queue a claimed task again, due after `in_s`, without counting the attempt.

    For workers that shut down, and for tasks that need something that is not available yet.
    Raises `StaleTask` if another claim holds the task.
    """
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
    """Cancel the subject's queued and running tasks. A worker that runs one gets `StaleTask`."""
    _cancel_where(session, TaskRow.kind == kind, TaskRow.subject == subject)


def cancel_all(session: Session, task_ids: Select[Any]) -> None:
    """Cancel the queued and running tasks among `task_ids`, a query for ids."""
    _cancel_where(session, TaskRow.id.in_(task_ids.scalar_subquery()))


def _cancel_where(session: Session, *conditions: ColumnElement[bool]) -> None:
    session.execute(
        update(TaskRow)
        .where(*conditions, TaskRow.state.in_((QUEUED, RUNNING)))
        .values(state=CANCELLED, fence=TaskRow.fence + 1, lease_until=None, finished_at=now())
        .execution_options(synchronize_session=False)
    )


def depth(session: Session, kinds: Sequence[str]) -> int:
    """Return the number of queued and running tasks."""
    return session.execute(
        select(func.count()).where(TaskRow.kind.in_(kinds), TaskRow.state.in_((QUEUED, RUNNING)))
    ).scalar_one()


def _lease_end(moment: datetime, lease_s: float) -> datetime:
    assert lease_s <= MAX_LEASE_S, lease_s
    return moment + timedelta(seconds=lease_s)


def _lease_expired(moment: datetime) -> ColumnElement[bool]:
    ahead = moment + timedelta(seconds=MAX_LEASE_AHEAD_S)
    return and_(TaskRow.state == RUNNING, or_(TaskRow.lease_until < moment, TaskRow.lease_until > ahead))


def _is_lost(session: Session, kinds: Sequence[str]) -> ColumnElement[bool]:
    return and_(
        TaskRow.kind.in_(kinds), _lease_expired(clock(session)), TaskRow.attempt >= TaskRow.max_attempts
    )


def _below_key_limit(moment: datetime, max_per_key: int) -> ColumnElement[bool]:
    keys_at_limit = (
        select(TaskRow.concurrency_key)
        .where(TaskRow.state == RUNNING, not_(_lease_expired(moment)), TaskRow.concurrency_key.is_not(None))
        .group_by(TaskRow.concurrency_key)
        .having(func.count() >= max_per_key)
    )
    return or_(TaskRow.concurrency_key.is_(None), TaskRow.concurrency_key.not_in(keys_at_limit))


def _first(condition: ColumnElement[bool]) -> ScalarSelect[int]:
    return (
        select(TaskRow.id)
        .where(TaskRow.state.in_((QUEUED, RUNNING)), condition)
        .order_by(TaskRow.priority.desc(), TaskRow.attempt, TaskRow.id)  # fresh tasks before retries
        .limit(1)
        .with_for_update(skip_locked=True)  # without effect on SQLite, which allows one writer at a time
        .scalar_subquery()
    )


def _compare_and_set(session: Session, task_id: int, fence: int, values: dict[str, Any]) -> None:
    updated_id = session.execute(
        update(TaskRow)
        .where(TaskRow.id == task_id, TaskRow.fence == fence, TaskRow.state == RUNNING)
        .values(values)
        .returning(TaskRow.id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if updated_id is None:
        raise StaleTask(task_id)


def clock(session: Session) -> datetime:
    """Return the time that all workers share: the database's on PostgreSQL, this host's on SQLite."""
    if session.get_bind().dialect.name == "postgresql":
        moment: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
        return moment.astimezone(UTC)
    return now()
