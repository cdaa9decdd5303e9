"""Task queue: each task is done once, also if workers die, sleep or report too late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, event, select, update
from sqlalchemy.orm import Session

from registry import db, queue
from registry.db import Sessions
from registry.errors import StaleTask
from registry.queue import ClaimedTask
from registry.tables import TaskRow
from tests.registry import child_actions
from tests.registry.helpers import processes, run_until_killed, threads
from tests.registry.interleaving import never_wait, on_postgresql, run_behind


def _enqueue(sessions: Sessions, subject: str = "1", kind: str = "build", **options: object) -> int:
    with sessions.begin() as session:
        return queue.enqueue(session, kind, subject, **{"max_attempts": 3} | options)  # type: ignore[arg-type]


def _claim_or_none(sessions: Sessions, lease_s: float = 60, kind: str = "build") -> ClaimedTask | None:
    with sessions.begin() as session:
        return queue.claim(session, [kind], "me", lease_s)


def _claim(sessions: Sessions, lease_s: float = 60) -> ClaimedTask:
    task = _claim_or_none(sessions, lease_s)
    assert task is not None
    return task


def _row(sessions: Sessions, task_id: int) -> TaskRow:
    with db.reading(sessions) as session:
        return session.get_one(TaskRow, task_id)


def _expire_lease(sessions: Sessions, task: ClaimedTask) -> None:
    """Set the end of the task's lease to an hour ago."""
    with sessions.begin() as session:
        an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
        session.execute(update(TaskRow).where(TaskRow.id == task.id).values(lease_until=an_hour_ago))


def test_four_processes_claim_and_finish_each_of_200_tasks_once(url: str, sessions: Sessions) -> None:
    with sessions.begin() as session:
        ids = [queue.enqueue(session, "score", str(i), max_attempts=3) for i in range(200)]
    finished = processes(child_actions.finish_all_tasks, [(url, "score")] * 4)
    assert Counter(i for of_process in finished for i in of_process) == Counter(ids)
    with db.reading(sessions) as session:
        rows = session.execute(select(TaskRow.state, TaskRow.fence, TaskRow.attempt, TaskRow.result)).all()
    assert {(state, fence, attempt) for state, fence, attempt, _ in rows} == {("done", 1, 1)}
    assert len({result["by"] for *_, result in rows}) > 1  # more than one process took part


def test_threads_claim_each_task_once(sessions: Sessions) -> None:
    for i in range(40):
        _enqueue(sessions, str(i))
    claimed = threads(*[lambda: [t.id for _ in range(10) if (t := _claim_or_none(sessions))]] * 4)
    ids = [i for of_thread in claimed for i in of_thread]  # type: ignore[union-attr]
    assert len(ids) == len(set(ids)) == 40


def test_a_rolled_back_transaction_enqueues_no_task(sessions: Sessions) -> None:
    with sessions() as session:
        queue.enqueue(session, "build", "1", max_attempts=3)
        session.rollback()
    assert _claim_or_none(sessions) is None


def test_tasks_are_claimed_by_priority_then_by_age(sessions: Sessions) -> None:
    ids = [_enqueue(sessions, priority=p) for p in (0, 10, 0, 10, -1)]
    assert [_claim(sessions).id for _ in ids] == [ids[i] for i in (1, 3, 0, 2, 4)]


def test_a_claim_skips_tasks_that_are_not_due_or_of_another_kind(sessions: Sessions) -> None:
    _enqueue(sessions, not_before=datetime.now(UTC) + timedelta(hours=1), priority=10)
    due = _enqueue(sessions, not_before=datetime.now(UTC) - timedelta(hours=1))
    assert _claim_or_none(sessions, kind="score") is None
    assert _claim(sessions).id == due
    assert _claim_or_none(sessions) is None
    with db.reading(sessions) as session:
        assert queue.depth(session, ["build"]) == 2


def test_the_task_of_a_killed_worker_is_claimed_again_after_its_lease_expired(
    url: str, sessions: Sessions
) -> None:
    task_id = _enqueue(sessions)
    run_until_killed(child_actions.claim_and_die, url, "build", 60.0)
    assert _claim_or_none(sessions) is None  # its worker may still be alive
    killed_claim = ClaimedTask(task_id, "build", "1", 1, 1, 0, 3)
    _expire_lease(sessions, killed_claim)
    again = _claim(sessions)
    assert (again.id, again.fence, again.attempt) == (task_id, 2, 2)


def test_a_worker_whose_lease_expired_cannot_change_the_task(sessions: Sessions) -> None:
    _enqueue(sessions)
    late = _claim(sessions)
    _expire_lease(sessions, late)
    current = _claim(sessions)
    late_calls = (
        lambda s: queue.finish(s, late.id, late.fence, {"from": "late"}),
        lambda s: queue.heartbeat(s, late.id, late.fence),
        lambda s: queue.fail(s, late.id, late.fence, "late"),
        lambda s: queue.fail(s, late.id, late.fence, "late", 1.0),
        lambda s: queue.release(s, late.id, late.fence),
    )
    for call in late_calls:
        with pytest.raises(StaleTask), sessions.begin() as session:
            call(session)
    with sessions.begin() as session:
        queue.finish(session, current.id, current.fence, {"from": "current"})
    row = _row(sessions, current.id)
    assert (row.state, row.result, row.error) == (queue.DONE, {"from": "current"}, None)
    for call in late_calls:  # also after the task is done
        with pytest.raises(StaleTask), sessions.begin() as session:
            call(session)


def test_one_claim_finishes_its_task_only_once(sessions: Sessions) -> None:
    _enqueue(sessions)
    task = _claim(sessions)

    def finish() -> None:
        with sessions.begin() as session:
            queue.finish(session, task.id, task.fence)

    outcomes = threads(*[finish] * 4)
    assert Counter(type(o).__name__ for o in outcomes) == {"NoneType": 1, "StaleTask": 3}


def test_updates_of_an_unknown_task_raise_stale_task(sessions: Sessions) -> None:
    for call in (queue.finish, queue.heartbeat, queue.release):
        with pytest.raises(StaleTask), sessions.begin() as session:
            call(session, 99, 1)
    with pytest.raises(StaleTask), sessions.begin() as session:
        queue.fail(session, 99, 1, "no", 1.0)


def test_a_heartbeat_extends_the_lease(sessions: Sessions) -> None:
    _enqueue(sessions)
    task = _claim(sessions, lease_s=5)
    before = _row(sessions, task.id).lease_until
    with sessions.begin() as session:
        queue.heartbeat(session, task.id, task.fence, 60)
    after = _row(sessions, task.id).lease_until
    assert before is not None
    assert after is not None
    assert after - before > timedelta(seconds=40)


def test_a_failed_task_is_retried_after_its_backoff_until_its_attempts_are_used(sessions: Sessions) -> None:
    task_id = _enqueue(sessions, max_attempts=2)
    task = _claim(sessions)
    with sessions.begin() as session:
        assert queue.fail(session, task.id, task.fence, "first", retry_in_s=3600)
    row = _row(sessions, task_id)
    assert (row.state, row.error) == (queue.QUEUED, "first")
    assert timedelta(minutes=59) < row.not_before - datetime.now(UTC) <= timedelta(hours=1)
    assert _claim_or_none(sessions) is None
    with sessions.begin() as session:
        session.execute(update(TaskRow).values(not_before=datetime.now(UTC) - timedelta(hours=1)))
    task = _claim(sessions)
    with sessions.begin() as session:
        assert not queue.fail(session, task.id, task.fence, "second", retry_in_s=0)
    row = _row(sessions, task_id)
    assert (row.state, row.error, row.lease_until) == (queue.FAILED, "second", None)
    assert row.finished_at is not None
    assert _claim_or_none(sessions) is None


def test_a_permanent_failure_is_not_retried(sessions: Sessions) -> None:
    _enqueue(sessions, max_attempts=9)
    task = _claim(sessions)
    with sessions.begin() as session:
        assert not queue.fail(session, task.id, task.fence, "permanent")
    assert _row(sessions, task.id).state == queue.FAILED


def test_the_error_of_a_lost_task_does_not_count_failures_as_deaths(sessions: Sessions) -> None:
    _enqueue(sessions, max_attempts=3)
    task = _claim(sessions)
    with sessions.begin() as session:
        assert queue.fail(session, task.id, task.fence, "an error", retry_in_s=0)
    for _ in range(2):
        _expire_lease(sessions, _claim(sessions))
    with sessions.begin() as session:
        lost = queue.fail_lost(session, ["build"])
    assert lost is not None
    assert (lost.attempt, lost.failures, lost.deaths) == (3, 1, 2)
    assert _row(sessions, task.id).error == "2 workers died while they ran it"


def test_a_task_lost_at_every_attempt_is_failed_and_returned_once(sessions: Sessions) -> None:
    _enqueue(sessions, max_attempts=2)
    for _ in range(2):
        _expire_lease(sessions, _claim(sessions))
    assert _claim_or_none(sessions) is None  # no third attempt

    def fail_lost() -> ClaimedTask | None:
        with sessions.begin() as session:
            return queue.fail_lost(session, ["build"])

    lost_tasks = [task for task in threads(*[fail_lost] * 4) if isinstance(task, ClaimedTask)]
    assert [(t.subject, t.attempt, t.max_attempts) for t in lost_tasks] == [("1", 2, 2)]
    row = _row(sessions, lost_tasks[0].id)
    assert (row.state, row.error) == (queue.FAILED, "2 workers died while they ran it")
    assert fail_lost() is None


def test_each_call_fails_one_of_several_lost_tasks(sessions: Sessions) -> None:
    """Callers lock the model of each: two models in one transaction could deadlock."""
    for subject in "ab":
        _enqueue(sessions, subject, max_attempts=1)
        _expire_lease(sessions, _claim(sessions))
    subjects = []
    for _ in range(3):
        with sessions.begin() as session:
            task = queue.fail_lost(session, ["build"])
            subjects.append(task and task.subject)
    assert subjects == ["a", "b", None]


def test_a_lost_task_can_be_peeked_at_and_then_failed_by_its_id(sessions: Sessions) -> None:
    for subject in "ab":
        _enqueue(sessions, subject, max_attempts=1)
        _expire_lease(sessions, _claim(sessions))
    with sessions.begin() as session:
        lost_task = queue.peek_lost(session, ["build"])
        assert lost_task is not None
        assert queue.peek_lost(session, ["score"]) is None
        assert queue.fail_lost(session, ["build"], lost_task.id) == lost_task
        assert queue.fail_lost(session, ["build"], lost_task.id) is None
        other = queue.peek_lost(session, ["build"])
        assert other is not None
        assert {lost_task.subject, other.subject} == {"a", "b"}


def test_a_task_with_a_live_lease_is_not_lost(sessions: Sessions) -> None:
    _enqueue(sessions, max_attempts=1)
    _claim(sessions)
    with sessions.begin() as session:
        assert queue.fail_lost(session, ["build"]) is None


def test_releasing_a_task_does_not_count_as_an_attempt(sessions: Sessions) -> None:
    _enqueue(sessions, max_attempts=1)
    for fence in (1, 2, 3):
        task = _claim(sessions)
        assert (task.fence, task.attempt) == (fence, 1)
        with sessions.begin() as session:
            queue.release(session, task.id, task.fence)
    with pytest.raises(StaleTask), sessions.begin() as session:
        queue.finish(session, task.id, task.fence)


def test_a_task_released_with_a_delay_is_not_due_before(sessions: Sessions) -> None:
    task_id = _enqueue(sessions)
    task = _claim(sessions)
    with sessions.begin() as session:
        queue.release(session, task.id, task.fence, in_s=3600)
    assert _claim_or_none(sessions) is None
    row = _row(sessions, task_id)
    assert (row.state, row.attempt, row.claimed_by) == (queue.QUEUED, 0, None)
    assert row.not_before - datetime.now(UTC) > timedelta(minutes=59)


def test_tasks_of_one_concurrency_key_run_up_to_the_limit(sessions: Sessions) -> None:
    ids = [_enqueue(sessions, concurrency_key=key) for key in ("a", "a", "a", "b", None)]

    def claim(max_per_key: int | None) -> ClaimedTask | None:
        with sessions.begin() as session:
            return queue.claim(session, ["build"], "me", 60, max_per_key=max_per_key)

    first, second, third = claim(1), claim(1), claim(1)
    assert first is not None
    assert second is not None
    assert third is not None
    assert [first.id, second.id, third.id] == [ids[0], ids[3], ids[4]]
    assert claim(1) is None
    _expire_lease(sessions, first)  # an expired lease does not count as running
    again = claim(1)
    assert again is not None
    assert again.id == ids[1]  # fresh tasks come before retries
    assert claim(1) is None
    with sessions.begin() as session:
        queue.finish(session, again.id, again.fence)
    fourth = claim(1)
    assert fourth is not None
    assert fourth.id == ids[2]
    last = claim(None)
    assert last is not None
    assert last.id == first.id


def test_has_claimable_reports_due_tasks_and_expired_leases(sessions: Sessions) -> None:
    def has_claimable(kind: str = "build") -> bool:
        with db.reading(sessions) as session:
            return queue.has_claimable(session, [kind])

    assert not has_claimable()
    _enqueue(sessions, not_before=datetime.now(UTC) + timedelta(hours=1))
    assert not has_claimable()
    _enqueue(sessions)
    assert has_claimable()
    assert not has_claimable("score")
    task = _claim(sessions)
    assert not has_claimable()
    _expire_lease(sessions, task)
    assert has_claimable()


def test_has_claimable_skips_tasks_above_the_concurrency_limit(sessions: Sessions) -> None:
    for _ in range(2):
        _enqueue(sessions, concurrency_key="fraud")

    def has_claimable(max_per_key: int | None) -> bool:
        with db.reading(sessions) as session:
            return queue.has_claimable(session, ["build"], max_per_key)

    assert has_claimable(1)
    _claim(sessions)
    assert [has_claimable(limit) for limit in (1, 2, None)] == [False, True, True]


def test_cancel_all_cancels_only_the_given_tasks(sessions: Sessions) -> None:
    ids = [_enqueue(sessions, str(n)) for n in range(4)]
    running, done = _claim(sessions), _claim(sessions)
    with sessions.begin() as session:
        queue.finish(session, done.id, done.fence)
        queue.cancel_all(session, select(TaskRow.id).where(TaskRow.id.in_(ids[:3])))
    assert [_row(sessions, i).state for i in ids] == ["cancelled", "done", "cancelled", "queued"]
    with pytest.raises(StaleTask), sessions.begin() as session:
        queue.heartbeat(session, running.id, running.fence)


def test_a_replacement_task_continues_the_fence(sessions: Sessions) -> None:
    _enqueue(sessions, fence=7)
    assert _claim(sessions).fence == 8


@pytest.mark.parametrize("hours", [5, -5])
def test_a_clock_jump_loses_no_task(sessions: Sessions, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """A jump forwards ends all leases at once; a jump backwards would keep leases of dead workers alive."""
    jump = timedelta(hours=hours)
    _enqueue(sessions, "dead")
    _enqueue(sessions, "alive")
    lost, alive = _claim(sessions), _claim(sessions)
    before = queue.clock
    monkeypatch.setattr(queue, "clock", lambda session: before(session) + jump)
    with sessions.begin() as session:
        queue.heartbeat(session, alive.id, alive.fence, 60)
    again = _claim(sessions)
    assert (again.id, again.attempt) == (lost.id, 2)
    assert _claim_or_none(sessions) is None
    with sessions.begin() as session:
        queue.finish(session, alive.id, alive.fence)
    with pytest.raises(StaleTask), sessions.begin() as session:
        queue.finish(session, lost.id, lost.fence)


def test_a_cancelled_task_is_not_claimed_and_is_stale_for_its_worker(sessions: Sessions) -> None:
    _enqueue(sessions, "mine")
    other = _enqueue(sessions, "other")
    task = _claim(sessions)
    _enqueue(sessions, "mine")
    with sessions.begin() as session:
        queue.cancel(session, "build", "mine")
    for call in (queue.heartbeat, queue.finish):
        with pytest.raises(StaleTask), sessions.begin() as session:
            call(session, task.id, task.fence)
    assert _claim(sessions).id == other
    assert _claim_or_none(sessions) is None
    with sessions.begin() as session:
        queue.cancel(session, "build", "other")
        assert queue.depth(session, ["build"]) == 0


def test_cancelling_a_subject_leaves_its_finished_tasks_done(sessions: Sessions) -> None:
    _enqueue(sessions)
    task = _claim(sessions)
    with sessions.begin() as session:
        queue.finish(session, task.id, task.fence, {"rows": 3})
        queue.cancel(session, "build", "1")
    assert _row(sessions, task.id).state == queue.DONE


def test_claims_use_the_index_of_queued_and_running_tasks(engine: Engine, sessions: Sessions) -> None:
    """The table keeps all finished tasks."""
    with sessions.begin() as session:
        session.add_all(
            TaskRow(kind="build", subject=str(i), state="done", not_before=datetime.now(UTC), max_attempts=3)
            for i in range(2000)
        )
    with engine.connect() as connection:
        connection.exec_driver_sql("ANALYZE")
    statements: list[tuple[str, object]] = []
    event.listen(engine, "before_cursor_execute", lambda _c, _u, s, p, *_: statements.append((s, p)))
    assert _claim_or_none(sessions) is None
    statement, parameters = next((s, p) for s, p in statements if s.startswith("UPDATE tasks"))
    explain = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
    with engine.connect() as connection:
        plan = str(connection.exec_driver_sql(explain + statement, parameters).all())
    assert "ix_tasks_state_kind_priority_id" in plan, plan


@pytest.fixture
def other(sessions: Sessions) -> Iterator[Session]:
    """A second session, which fails instead of waiting for a lock."""
    with sessions() as session:
        yield never_wait(session)


@on_postgresql
def test_a_claim_skips_the_task_of_a_claim_that_is_not_committed(sessions: Sessions, other: Session) -> None:
    ids = [_enqueue(sessions, str(n)) for n in range(2)]
    with sessions.begin() as session:
        first = queue.claim(session, ["build"], "me", 60)
        second = queue.claim(other, ["build"], "you", 60)
        assert first is not None
        assert second is not None
        assert [first.id, second.id] == ids
        with sessions.begin() as third:
            assert queue.claim(never_wait(third), ["build"], "they", 60) is None


@on_postgresql
def test_a_lost_task_that_another_worker_fails_is_skipped(sessions: Sessions, other: Session) -> None:
    ids = [_enqueue(sessions, str(n), max_attempts=1) for n in range(2)]
    for _ in ids:
        _expire_lease(sessions, _claim(sessions))
    with sessions.begin() as session:
        first, second = queue.fail_lost(session, ["build"]), queue.fail_lost(other, ["build"])
        assert first is not None
        assert second is not None
        assert sorted([first.id, second.id]) == ids


@on_postgresql
def test_a_task_that_gets_a_heartbeat_at_the_same_time_is_not_lost(
    sessions: Sessions, other: Session
) -> None:
    task_id = _enqueue(sessions, max_attempts=1)
    task = _claim(sessions)
    _expire_lease(sessions, task)
    with sessions.begin() as session:
        queue.heartbeat(session, task.id, task.fence)
        lost = queue.peek_lost(other, ["build"])
        assert lost is not None
        assert lost.id == task_id  # the heartbeat is not committed
        assert queue.fail_lost(other, ["build"], task_id) is None
    assert queue.fail_lost(other, ["build"], task_id) is None
    assert queue.peek_lost(other, ["build"]) is None


@on_postgresql
@pytest.mark.parametrize("kind", ["finish", "fail", "release", "heartbeat", "cancel"])
def test_a_result_behind_another_claim_or_cancel_of_the_task_is_stale(sessions: Sessions, kind: str) -> None:
    """The update waits for the other transaction, and compares the fence and the state again."""
    _enqueue(sessions)
    task = _claim(sessions)
    _expire_lease(sessions, task)

    def first(session: Session) -> None:
        if kind == "cancel":
            queue.cancel(session, "build", "1")
        else:
            assert queue.claim(session, ["build"], "you", 60) is not None

    def second(session: Session) -> object:
        match kind:
            case "fail":
                return queue.fail(session, task.id, task.fence, "no", 1.0)
            case "release":
                return queue.release(session, task.id, task.fence)
            case "heartbeat":
                return queue.heartbeat(session, task.id, task.fence)
        return queue.finish(session, task.id, task.fence, {})

    assert isinstance(run_behind(sessions, first, second), StaleTask)
    row = _row(sessions, task.id)
    assert (row.state, row.fence) == ("cancelled" if kind == "cancel" else "running", task.fence + 1)
    assert (row.error, row.result) == (None, None)


@on_postgresql
def test_a_task_that_ends_at_the_same_time_is_not_cancelled(sessions: Sessions) -> None:
    task_id = _enqueue(sessions)
    task = _claim(sessions)
    run_behind(
        sessions,
        lambda session: queue.finish(session, task.id, task.fence, {"rows": 1}),
        lambda session: queue.cancel(session, "build", "1"),
    )
    row = _row(sessions, task_id)
    assert (row.state, row.result, row.fence) == ("done", {"rows": 1}, task.fence)


def test_only_an_open_task_is_enqueued_once(sessions: Sessions) -> None:
    def once(subject: str = "1", kind: str = "build") -> int:
        with sessions.begin() as session:
            return queue.enqueue_once(session, kind, subject, max_attempts=1)

    first = once()
    assert once() == first
    assert len({first, once("2"), once(kind="export")}) == 3
    task = _claim(sessions)
    assert (task.id, once()) == (first, first)  # running
    with sessions.begin() as session:
        queue.finish(session, task.id, task.fence)
    assert once() not in (first, None)


@pytest.mark.parametrize("end", ["finish", "fail", "cancel"])
def test_a_task_that_has_ended_is_stale_for_every_update(sessions: Sessions, end: str) -> None:
    _enqueue(sessions)
    task = _claim(sessions)
    with sessions.begin() as session:
        match end:
            case "finish":
                queue.finish(session, task.id, task.fence)
            case "fail":
                queue.fail(session, task.id, task.fence, "no")
            case _:
                queue.cancel(session, "build", "1")
        fence = session.get_one(TaskRow, task.id).fence
    before = _row(sessions, task.id)
    for update_task in (queue.heartbeat, queue.finish, queue.release):
        with pytest.raises(StaleTask), sessions.begin() as session:
            update_task(session, task.id, fence)
    with pytest.raises(StaleTask), sessions.begin() as session:
        queue.fail(session, task.id, fence, "again", 1.0)
    after = _row(sessions, task.id)
    assert (after.state, after.error, after.failures) == (before.state, before.error, before.failures)
