"""The queue: each task is done once, whoever dies, sleeps or comes too late."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, event, select, update

from registry import db, queue
from registry.db import Sessions
from registry.errors import StaleTask
from registry.queue import Task
from registry.tables import TaskRow
from tests.registry import crowd
from tests.registry.helpers import killed, processes, threads


def _enqueue(sessions: Sessions, subject: str = "1", kind: str = "build", **more: object) -> int:
    with sessions.begin() as session:
        return queue.enqueue(session, kind, subject, **more)  # type: ignore[arg-type]


def _claim(sessions: Sessions, lease_s: float = 60, kind: str = "build") -> Task | None:
    with sessions.begin() as session:
        return queue.claim(session, [kind], "me", lease_s)


def _take(sessions: Sessions, lease_s: float = 60) -> Task:
    task = _claim(sessions, lease_s)
    assert task is not None
    return task


def _row(sessions: Sessions, task_id: int) -> TaskRow:
    with db.reading(sessions) as session:
        return session.get_one(TaskRow, task_id)


def _lapse(sessions: Sessions, task: Task) -> None:
    """As if the lease had been given an hour ago."""
    with sessions.begin() as session:
        past = datetime.now(UTC) - timedelta(hours=1)
        session.execute(update(TaskRow).where(TaskRow.id == task.id).values(lease_until=past))


def test_four_processes_claim_and_finish_each_of_400_tasks_once(url: str, sessions: Sessions) -> None:
    with sessions.begin() as session:
        ids = [queue.enqueue(session, "score", str(i)) for i in range(400)]
    done = processes(crowd.work, [(url, "score")] * 4)
    assert Counter(i for by_one in done for i in by_one) == Counter(ids)
    with db.reading(sessions) as session:
        rows = session.execute(select(TaskRow.state, TaskRow.fence, TaskRow.attempt, TaskRow.result)).all()
    assert {(state, fence, attempt) for state, fence, attempt, _ in rows} == {("done", 1, 1)}
    assert len({result["by"] for *_, result in rows}) > 1  # they shared the work


def test_threads_claim_each_task_once(sessions: Sessions) -> None:
    for i in range(40):
        _enqueue(sessions, str(i))
    claimed = threads(*[lambda: [t.id for _ in range(10) if (t := _claim(sessions))]] * 4)
    ids = [i for by_one in claimed for i in by_one]  # type: ignore[union-attr]
    assert len(ids) == len(set(ids)) == 40


def test_a_task_exists_with_the_transaction_it_was_enqueued_in(sessions: Sessions) -> None:
    with sessions() as session:
        queue.enqueue(session, "build", "1")
        session.rollback()
    assert _claim(sessions) is None


def test_high_priority_first_then_the_oldest(sessions: Sessions) -> None:
    ids = [_enqueue(sessions, priority=p) for p in (0, 10, 0, 10, -1)]
    assert [_take(sessions).id for _ in ids] == [ids[i] for i in (1, 3, 0, 2, 4)]


def test_a_task_is_not_claimed_before_its_time_nor_by_who_does_another_kind(sessions: Sessions) -> None:
    _enqueue(sessions, not_before=datetime.now(UTC) + timedelta(hours=1), priority=10)
    due = _enqueue(sessions, not_before=datetime.now(UTC) - timedelta(hours=1))
    assert _claim(sessions, kind="score") is None
    assert _take(sessions).id == due
    assert _claim(sessions) is None
    with db.reading(sessions) as session:
        assert queue.depth(session, ["build"]) == 2


def test_the_task_of_a_killed_worker_is_claimed_again_when_its_lease_has_lapsed(
    url: str, sessions: Sessions
) -> None:
    task_id = _enqueue(sessions)
    killed(crowd.claim_and_die, url, "build", 60.0)
    assert _claim(sessions) is None  # it may still be alive
    killed_claim = Task(task_id, "build", "1", 1, 1, 0, 3)
    _lapse(sessions, killed_claim)
    again = _take(sessions)
    assert (again.id, again.fence, again.attempt) == (task_id, 2, 2)


def test_who_slept_through_his_lease_changes_nothing(sessions: Sessions) -> None:
    _enqueue(sessions)
    slept = _take(sessions)
    _lapse(sessions, slept)
    awake = _take(sessions)
    late = (
        lambda s: queue.finish(s, slept.id, slept.fence, {"from": "late"}),
        lambda s: queue.heartbeat(s, slept.id, slept.fence),
        lambda s: queue.fail(s, slept.id, slept.fence, "late"),
        lambda s: queue.fail(s, slept.id, slept.fence, "late", 1.0),
        lambda s: queue.release(s, slept.id, slept.fence),
    )
    for call in late:
        with pytest.raises(StaleTask), sessions.begin() as session:
            call(session)
    with sessions.begin() as session:
        queue.finish(session, awake.id, awake.fence, {"from": "awake"})
    row = _row(sessions, awake.id)
    assert (row.state, row.result, row.error) == (queue.DONE, {"from": "awake"}, None)
    for call in late:  # nor after the end
        with pytest.raises(StaleTask), sessions.begin() as session:
            call(session)


def test_a_task_is_finished_once_also_by_the_same_claim(sessions: Sessions) -> None:
    _enqueue(sessions)
    task = _take(sessions)

    def finish() -> None:
        with sessions.begin() as session:
            queue.finish(session, task.id, task.fence)

    outcomes = threads(*[finish] * 4)
    assert Counter(type(o).__name__ for o in outcomes) == {"NoneType": 1, "StaleTask": 3}


def test_a_task_that_there_never_was_is_stale(sessions: Sessions) -> None:
    for call in (queue.finish, queue.heartbeat, queue.release):
        with pytest.raises(StaleTask), sessions.begin() as session:
            call(session, 99, 1)
    with pytest.raises(StaleTask), sessions.begin() as session:
        queue.fail(session, 99, 1, "no", 1.0)


def test_a_heartbeat_extends_the_lease(sessions: Sessions) -> None:
    _enqueue(sessions)
    task = _take(sessions, lease_s=5)
    first = _row(sessions, task.id).lease_until
    with sessions.begin() as session:
        queue.heartbeat(session, task.id, task.fence, 60)
    then = _row(sessions, task.id).lease_until
    assert first is not None
    assert then is not None
    assert then - first > timedelta(seconds=40)


def test_a_failure_comes_back_after_its_backoff_until_no_attempt_is_left(sessions: Sessions) -> None:
    task_id = _enqueue(sessions, max_attempts=2)
    task = _take(sessions)
    with sessions.begin() as session:
        assert queue.fail(session, task.id, task.fence, "first", retry_in_s=3600)
    row = _row(sessions, task_id)
    assert (row.state, row.error) == (queue.QUEUED, "first")
    assert timedelta(minutes=59) < row.not_before - datetime.now(UTC) <= timedelta(hours=1)
    assert _claim(sessions) is None
    with sessions.begin() as session:
        session.execute(update(TaskRow).values(not_before=datetime.now(UTC) - timedelta(hours=1)))
    task = _take(sessions)
    with sessions.begin() as session:
        assert not queue.fail(session, task.id, task.fence, "second", retry_in_s=0)
    row = _row(sessions, task_id)
    assert (row.state, row.error, row.lease_until) == (queue.FAILED, "second", None)
    assert row.finished_at is not None
    assert _claim(sessions) is None


def test_a_failure_for_good_uses_no_further_attempt(sessions: Sessions) -> None:
    _enqueue(sessions, max_attempts=9)
    task = _take(sessions)
    with sessions.begin() as session:
        assert not queue.fail(session, task.id, task.fence, "hopeless")
    assert _row(sessions, task.id).state == queue.FAILED


def test_a_task_whose_every_worker_died_is_told_of_once(sessions: Sessions) -> None:
    _enqueue(sessions, max_attempts=2)
    for _ in range(2):
        _lapse(sessions, _take(sessions))
    assert _claim(sessions) is None  # no third attempt

    def ask() -> list[Task]:
        with sessions.begin() as session:
            return queue.expired(session, ["build"])

    told = [task for tasks in threads(*[ask] * 4) for task in tasks]  # type: ignore[union-attr]
    assert [(t.subject, t.attempt, t.max_attempts) for t in told] == [("1", 2, 2)]
    row = _row(sessions, told[0].id)
    assert (row.state, row.error) == (queue.FAILED, "the worker died at every attempt")
    assert ask() == []


def test_of_several_lost_tasks_one_is_told_at_a_time(sessions: Sessions) -> None:
    """What follows from each locks its model: two of them in one transaction could deadlock."""
    for subject in "ab":
        _enqueue(sessions, subject, max_attempts=1)
        _lapse(sessions, _take(sessions))
    told = []
    for _ in range(3):
        with sessions.begin() as session:
            told.append([t.subject for t in queue.expired(session, ["build"])])
    assert told == [["a"], ["b"], []]


def test_who_knows_which_task_was_lost_may_look_first_and_tell_that_one(sessions: Sessions) -> None:
    for subject in "ab":
        _enqueue(sessions, subject, max_attempts=1)
        _lapse(sessions, _take(sessions))
    with sessions.begin() as session:
        found = queue.lost(session, ["build"])
        assert found is not None
        assert queue.lost(session, ["score"]) is None
        assert queue.expired(session, ["build"], found.id) == [found]
        assert queue.expired(session, ["build"], found.id) == []
        other = queue.lost(session, ["build"])
        assert other is not None
        assert {found.subject, other.subject} == {"a", "b"}


def test_a_live_lease_is_not_expired(sessions: Sessions) -> None:
    _enqueue(sessions, max_attempts=1)
    _take(sessions)
    with sessions.begin() as session:
        assert queue.expired(session, ["build"]) == []


def test_a_released_task_has_lost_no_attempt(sessions: Sessions) -> None:
    _enqueue(sessions, max_attempts=1)
    for fence in (1, 2, 3):
        task = _take(sessions)
        assert (task.fence, task.attempt) == (fence, 1)
        with sessions.begin() as session:
            queue.release(session, task.id, task.fence)
    with pytest.raises(StaleTask), sessions.begin() as session:
        queue.finish(session, task.id, task.fence)


def test_what_is_released_for_later_is_not_due_before(sessions: Sessions) -> None:
    task_id = _enqueue(sessions)
    task = _take(sessions)
    with sessions.begin() as session:
        queue.release(session, task.id, task.fence, in_s=3600)
    assert _claim(sessions) is None
    row = _row(sessions, task_id)
    assert (row.state, row.attempt, row.claimed_by) == (queue.QUEUED, 0, None)
    assert row.not_before - datetime.now(UTC) > timedelta(minutes=59)


def test_of_one_concurrency_key_no_more_run_than_are_allowed(sessions: Sessions) -> None:
    ids = [_enqueue(sessions, concurrency_key=key) for key in ("a", "a", "a", "b", None)]

    def claim(most: int | None) -> Task | None:
        with sessions.begin() as session:
            return queue.claim(session, ["build"], "me", 60, most_at_once=most)

    first, second, third = claim(1), claim(1), claim(1)
    assert first is not None
    assert second is not None
    assert third is not None
    assert [first.id, second.id, third.id] == [ids[0], ids[3], ids[4]]  # those above it do not block the rest
    assert claim(1) is None
    _lapse(sessions, first)  # a dead worker's claim is no running one
    again = claim(1)
    assert again is not None
    assert again.id == ids[1]  # who lost a worker lets others by
    assert claim(1) is None
    with sessions.begin() as session:
        queue.finish(session, again.id, again.fence)
    more = claim(1)
    assert more is not None
    assert more.id == ids[2]
    last = claim(None)
    assert last is not None
    assert last.id == first.id


def test_a_look_says_whether_a_claim_is_worth_trying(sessions: Sessions) -> None:
    def waiting(kind: str = "build") -> bool:
        with db.reading(sessions) as session:
            return queue.is_waiting(session, [kind])

    assert not waiting()
    _enqueue(sessions, not_before=datetime.now(UTC) + timedelta(hours=1))
    assert not waiting()
    _enqueue(sessions)
    assert waiting()
    assert not waiting("score")
    task = _take(sessions)
    assert not waiting()
    _lapse(sessions, task)
    assert waiting()


def test_a_look_passes_over_what_may_not_run_now(sessions: Sessions) -> None:
    for _ in range(2):
        _enqueue(sessions, concurrency_key="fraud")

    def waiting(most: int | None) -> bool:
        with db.reading(sessions) as session:
            return queue.is_waiting(session, ["build"], most)

    assert waiting(1)
    _take(sessions)
    assert [waiting(most) for most in (1, 2, None)] == [False, True, True]


def test_tasks_are_cancelled_by_their_ids_and_others_are_not(sessions: Sessions) -> None:
    ids = [_enqueue(sessions, str(n)) for n in range(4)]
    running, done = _take(sessions), _take(sessions)
    with sessions.begin() as session:
        queue.finish(session, done.id, done.fence)
        queue.cancel_all(session, select(TaskRow.id).where(TaskRow.id.in_(ids[:3])))
    assert [_row(sessions, i).state for i in ids] == ["cancelled", "done", "cancelled", "queued"]
    with pytest.raises(StaleTask), sessions.begin() as session:
        queue.heartbeat(session, running.id, running.fence)


def test_a_task_that_replaces_another_goes_on_from_its_fence(sessions: Sessions) -> None:
    _enqueue(sessions, fence=7)
    assert _take(sessions).fence == 8


@pytest.mark.parametrize("hours", [5, -5])
def test_a_clock_that_jumps_loses_no_task(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Forwards every lease is over at once, and backwards those of the dead would never end."""
    jump = timedelta(hours=hours)
    _enqueue(sessions, "dead")
    _enqueue(sessions, "alive")
    dead, alive = _take(sessions), _take(sessions)
    before = queue.clock
    monkeypatch.setattr(queue, "clock", lambda session: before(session) + jump)
    with sessions.begin() as session:
        queue.heartbeat(session, alive.id, alive.fence, 60)
    again = _take(sessions)
    assert (again.id, again.attempt) == (dead.id, 2)
    assert _claim(sessions) is None
    with sessions.begin() as session:
        queue.finish(session, alive.id, alive.fence)
    with pytest.raises(StaleTask), sessions.begin() as session:
        queue.finish(session, dead.id, dead.fence)


def test_a_cancelled_task_is_not_claimed_and_its_worker_learns_of_it(sessions: Sessions) -> None:
    _enqueue(sessions, "mine")
    other = _enqueue(sessions, "other")
    task = _take(sessions)
    _enqueue(sessions, "mine")
    with sessions.begin() as session:
        queue.cancel(session, "build", "mine")
    for call in (queue.heartbeat, queue.finish):
        with pytest.raises(StaleTask), sessions.begin() as session:
            call(session, task.id, task.fence)
    assert _take(sessions).id == other
    assert _claim(sessions) is None
    with sessions.begin() as session:
        queue.cancel(session, "build", "other")
        assert queue.depth(session, ["build"]) == 0


def test_what_is_done_stays_done_when_its_subject_is_cancelled(sessions: Sessions) -> None:
    _enqueue(sessions)
    task = _take(sessions)
    with sessions.begin() as session:
        queue.finish(session, task.id, task.fence, {"rows": 3})
        queue.cancel(session, "build", "1")
    assert _row(sessions, task.id).state == queue.DONE


def test_claims_look_only_at_what_waits_or_runs(engine: Engine, sessions: Sessions) -> None:
    """The table remembers every task there ever was."""
    with sessions.begin() as session:
        session.add_all(
            TaskRow(kind="build", subject=str(i), state="done", not_before=datetime.now(UTC), max_attempts=3)
            for i in range(2000)
        )
    with engine.connect() as connection:
        connection.exec_driver_sql("ANALYZE")
    said: list[tuple[str, object]] = []
    event.listen(engine, "before_cursor_execute", lambda _c, _u, s, p, *_: said.append((s, p)))
    assert _claim(sessions) is None
    statement, parameters = next((s, p) for s, p in said if s.startswith("UPDATE tasks"))
    explain = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
    with engine.connect() as connection:
        plan = str(connection.exec_driver_sql(explain + statement, parameters).all())
    assert "ix_tasks_state_kind_priority_id" in plan, plan
