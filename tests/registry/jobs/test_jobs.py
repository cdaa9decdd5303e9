"""Jobs: planned once, each partition counted once, ended once, and gone on with from wherever they ended."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from registry import db, queue
from registry.artifacts import Store
from registry.db import Sessions
from registry.errors import Conflict, NotFound, StaleTask
from registry.jobs import jobs, progress, retention
from registry.jobs.jobs import NewJob, NewPartition
from registry.jobs.tables import JobRow, PartitionRow
from registry.queue import Task
from registry.tables import TaskRow, VersionRow, now
from tests.registry.helpers import publish_ready, threads

PARTS = [NewPartition({"start": n}, rows=10) for n in range(3)]


def _create(sessions: Sessions, model: str | None = "fraud", **more: object) -> int:
    with sessions.begin() as session:
        new = NewJob(kind=jobs.SCORE, spec={"model": model}, model=model, **more)  # type: ignore[arg-type]
        return jobs.create(session, new, by="ann").id


def _take(sessions: Sessions) -> Task:
    task = _claim(sessions)
    assert task is not None
    return task


def _claim(sessions: Sessions) -> Task | None:
    with sessions.begin() as session:
        return queue.claim(session, jobs.KINDS, "me", 60)


def _plan(sessions: Sessions, job_id: int, parts: Sequence[NewPartition] = PARTS) -> None:
    """As a worker does it."""
    task = _take(sessions)
    assert (task.kind, task.subject) == (jobs.PLAN, str(job_id))
    with sessions.begin() as session:
        job = jobs.lock(session, job_id)
        queue.finish(session, task.id, task.fence)
        job.state, job.plan, job.started_at = jobs.RUNNING, {"frozen": True}, now()
        jobs.plan(session, job, jobs.SCORE, parts)


def _do(sessions: Sessions, task: Task, rows: int = 9, failed: int = 1) -> None:
    job_id, stage, number = task.subject.split("/")
    with sessions.begin() as session:
        job = jobs.lock(session, int(job_id))
        queue.finish(session, task.id, task.fence)
        row = jobs.partition(session, job.id, stage, int(number))
        jobs.partition_done(
            session, job, row, rows=rows, failed=failed, result={"file": f"part-{task.fence}"}
        )


def _assemble(sessions: Sessions) -> None:
    task = _take(sessions)
    assert task.kind == jobs.ASSEMBLE
    with sessions.begin() as session:
        job = jobs.lock(session, int(task.subject))
        queue.finish(session, task.id, task.fence)
        jobs.end(session, job, jobs.DONE)


def _end(sessions: Sessions, job_id: int, state: str, error: str | None = None) -> None:
    with sessions.begin() as session:
        jobs.end(session, jobs.lock(session, job_id), state, error)


def _cancel(sessions: Sessions, job_id: int) -> JobRow:
    with sessions.begin() as session:
        return jobs.cancel(session, job_id)


def _resume(sessions: Sessions, job_id: int) -> JobRow:
    with sessions.begin() as session:
        return jobs.resume(session, job_id)


def _job(sessions: Sessions, job_id: int) -> JobRow:
    with db.reading(sessions) as session:
        return jobs.get(session, job_id)


def _parts(sessions: Sessions, job_id: int) -> list[PartitionRow]:
    with db.reading(sessions) as session:
        return jobs.partitions(session, job_id)


def _waiting(sessions: Sessions) -> list[tuple[str, str]]:
    with db.reading(sessions) as session:
        found = select(TaskRow.kind, TaskRow.subject).where(TaskRow.state.in_(("queued", "running")))
        return sorted((kind, subject) for kind, subject in session.execute(found))


def test_a_job_is_queued_with_its_planning(sessions: Sessions) -> None:
    job_id = _create(sessions, max_attempts=2, keep_s=60.0)
    job = _job(sessions, job_id)
    assert (job.state, job.plan, job.created_by, job.expires_at) == (jobs.QUEUED, None, "ann", None)
    task = _take(sessions)
    assert (task.kind, task.subject, task.max_attempts) == (jobs.PLAN, "1", 2 + jobs.LOST_WORKERS)
    with db.reading(sessions) as session:
        assert progress.of(session, [job_id]) == {}


def test_a_job_is_there_with_the_transaction_that_made_it(sessions: Sessions) -> None:
    with sessions() as session:
        jobs.create(session, NewJob(kind=jobs.SCORE, spec={}, model=None), by="ann")
        session.rollback()
    assert _claim(sessions) is None


def test_a_version_is_pinned_when_the_job_is_made(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    with db.reading(sessions) as session:
        version = session.scalars(select(VersionRow).where(VersionRow.number == 1)).one()
    job = _job(sessions, _create(sessions, version=version))
    assert (job.version, job.version_id) == (1, version.id)


def test_a_job_goes_from_its_plan_over_its_partitions_to_its_assembly(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id)
    assert _waiting(sessions) == [(jobs.PARTITION, f"{job_id}/score/{n}") for n in range(3)]
    tasks = [_take(sessions) for _ in range(3)]
    for task in reversed(tasks):  # in whatever order
        assert (jobs.ASSEMBLE, str(job_id)) not in _waiting(sessions)
        _do(sessions, task)
    assert _waiting(sessions) == [(jobs.ASSEMBLE, str(job_id))]
    _assemble(sessions)
    assert _waiting(sessions) == []
    job = _job(sessions, job_id)
    assert job.state == jobs.DONE
    assert job.finished_at is not None
    assert job.expires_at == job.finished_at + timedelta(seconds=jobs.KEEP_S)


def test_a_job_without_partitions_is_assembled_at_once(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id, [])
    assert _waiting(sessions) == [(jobs.ASSEMBLE, str(job_id))]


def test_planning_and_assembling_wait_for_no_other_jobs_partitions(sessions: Sessions) -> None:
    first = _create(sessions)
    _plan(sessions, first)
    second = _create(sessions)
    _plan(sessions, second, PARTS[:1])  # claims its planning before the partitions of the first
    subjects = [_take(sessions).subject for _ in range(4)]
    assert subjects == [f"{first}/score/{n}" for n in range(3)] + [f"{second}/score/0"]


def test_a_partition_counts_once_however_often_it_was_computed(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id)
    task = _take(sessions)
    with sessions.begin() as session:  # its lease runs out, and somebody else takes it
        session.execute(update(TaskRow).where(TaskRow.id == task.id).values(lease_until=now() - timedelta(1)))
    others = [_take(sessions) for _ in range(3)]
    again = next(t for t in others if t.id == task.id)
    _do(sessions, again, rows=10, failed=0)
    with pytest.raises(StaleTask):
        _do(sessions, task, rows=1, failed=9)
    row = _parts(sessions, job_id)[0]
    assert (row.rows, row.failed, row.rows_total, row.result) == (10, 0, 10, {"file": "part-2"})
    for other in others:
        if other.id != task.id:
            _do(sessions, other)
    assert _waiting(sessions) == [(jobs.ASSEMBLE, str(job_id))]


def test_lanes_that_finish_at_once_enqueue_one_assembly(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id, [NewPartition({}) for _ in range(4)])
    tasks = [_take(sessions) for _ in range(4)]
    assert threads(*[lambda t=t: _do(sessions, t) for t in tasks]) == [None] * 4  # type: ignore[misc]
    assert _waiting(sessions) == [(jobs.ASSEMBLE, str(job_id))]


def test_progress_counts_rows_as_they_come(sessions: Sessions) -> None:
    job_id, other = _create(sessions), _create(sessions)
    _plan(sessions, job_id, [NewPartition({}, 10), NewPartition({}), NewPartition({}, 10)])
    assert _take(sessions).kind == jobs.PLAN  # the other's
    _do(sessions, _take(sessions))
    with sessions.begin() as session:
        row = jobs.partition(session, job_id, jobs.SCORE, 1)
        row.rows, row.failed = 4, 2
    with db.reading(sessions) as session:
        found = progress.of(session, [job_id, other])
    assert found == {
        job_id: progress.Progress(
            partitions_total=3,
            partitions_done=1,
            rows_total=None,
            rows_done=13,
            rows_failed=3,
            attempts=1,
            rows_lately=16,
            partitions_lately=1,
        )
    }
    with sessions.begin() as session:
        jobs.partition(session, job_id, jobs.SCORE, 1).rows_total = 7
    with db.reading(sessions) as session:
        assert progress.of(session, [job_id])[job_id].rows_total == 27


def test_what_was_done_before_a_job_was_resumed_says_nothing_of_its_pace(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id)
    _do(sessions, _take(sessions))
    with sessions.begin() as session:  # killed in the middle
        jobs.partition(session, job_id, jobs.SCORE, 1).rows = 7
    _cancel(sessions, job_id)
    assert _resume(sessions, job_id).started_at is None
    with sessions.begin() as session:
        jobs.get(session, job_id).started_at = now()
    with db.reading(sessions) as session:
        found = progress.of(session, [job_id])[job_id]
    assert (found.rows_done, found.partitions_done) == (9, 1)
    assert (found.rows_lately, found.partitions_lately) == (0, 0)
    _do(sessions, _take(sessions))
    with db.reading(sessions) as session:
        found = progress.of(session, [job_id])[job_id]
    assert (found.rows_done, found.rows_lately, found.partitions_lately) == (18, 10, 1)


def test_a_job_that_ended_has_nothing_in_the_queue(sessions: Sessions) -> None:
    job_id, other = _create(sessions), _create(sessions)
    _plan(sessions, job_id)
    running = next(t for t in iter(lambda: _claim(sessions), None) if t.kind == jobs.PARTITION)
    _end(sessions, job_id, jobs.FAILED, "why")
    job = _job(sessions, job_id)
    assert (job.state, job.error) == (jobs.FAILED, "why")
    assert _waiting(sessions) == [(jobs.PLAN, str(other))]
    with pytest.raises(StaleTask):
        _do(sessions, running)
    assert [p.result for p in _parts(sessions, job_id)] == [None] * 3


def test_cancelling_is_for_jobs_that_are_not_over(sessions: Sessions) -> None:
    job_id = _create(sessions)
    assert _cancel(sessions, job_id).state == jobs.CANCELLED
    assert _waiting(sessions) == []
    ended = _job(sessions, job_id).finished_at
    assert _cancel(sessions, job_id).finished_at == ended  # a second time changes nothing
    for state in (jobs.DONE, jobs.FAILED):
        other = _create(sessions)
        _end(sessions, other, state)
        with pytest.raises(Conflict, match=f"is {state}; only a job that is queued or running"):
            _cancel(sessions, other)
    with pytest.raises(NotFound):
        _cancel(sessions, 99)


@pytest.mark.parametrize("state", [jobs.FAILED, jobs.CANCELLED])
def test_a_job_that_was_not_planned_is_resumed_with_its_planning(sessions: Sessions, state: str) -> None:
    job_id = _create(sessions)
    _end(sessions, job_id, state, "why")
    job = _resume(sessions, job_id)
    assert (job.state, job.error, job.finished_at, job.expires_at) == (jobs.QUEUED, None, None, None)
    assert _waiting(sessions) == [(jobs.PLAN, str(job_id))]


@pytest.mark.parametrize("state", [jobs.FAILED, jobs.CANCELLED])
def test_what_is_done_is_not_done_again_when_a_job_is_resumed(sessions: Sessions, state: str) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id)
    _do(sessions, _take(sessions))
    with sessions.begin() as session:
        jobs.partition(session, job_id, jobs.SCORE, 1).failures = 4
    _end(sessions, job_id, state)
    _resume(sessions, job_id)
    assert _waiting(sessions) == [(jobs.PARTITION, f"{job_id}/score/{n}") for n in (1, 2)]
    assert [p.failures for p in _parts(sessions, job_id)] == [0, 0, 0]
    for _ in range(2):
        _do(sessions, _take(sessions))
    _assemble(sessions)
    assert _job(sessions, job_id).state == jobs.DONE


def test_a_job_whose_partitions_are_all_done_is_resumed_with_its_assembly(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id)
    for _ in range(3):
        _do(sessions, _take(sessions))
    _end(sessions, job_id, jobs.FAILED, "no space left")
    _resume(sessions, job_id)
    assert _waiting(sessions) == [(jobs.ASSEMBLE, str(job_id))]


def test_a_job_that_is_not_over_or_done_cannot_be_resumed(sessions: Sessions) -> None:
    job_id = _create(sessions)
    with pytest.raises(Conflict, match="is queued; only a failed or cancelled job"):
        _resume(sessions, job_id)
    _plan(sessions, job_id)
    with pytest.raises(Conflict, match="is running"):
        _resume(sessions, job_id)
    _end(sessions, job_id, jobs.DONE)
    with pytest.raises(Conflict, match="is done"):
        _resume(sessions, job_id)
    with pytest.raises(NotFound):
        _resume(sessions, 99)


def test_no_two_claims_of_a_partition_ever_have_the_same_fence(sessions: Sessions) -> None:
    """Files carry it in their names: who was stopped in the middle of one may still be writing it."""
    job_id = _create(sessions)
    _plan(sessions, job_id, PARTS[:1])
    fences = []
    for _ in range(3):
        task = _take(sessions)
        fences.append(task.fence)
        _cancel(sessions, job_id)
        _resume(sessions, job_id)
    task = _take(sessions)
    _do(sessions, task)
    with sessions.begin() as session:
        job = jobs.lock(session, job_id)
        jobs.partition_lost(session, job, jobs.partition(session, job_id, jobs.SCORE, 0))
        queue.cancel(session, jobs.ASSEMBLE, str(job_id))
    fences += [task.fence, _take(sessions).fence]
    assert all(a < b for a, b in itertools.pairwise(fences)), fences


def test_a_partition_whose_files_are_gone_is_done_again_and_counted_once(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id)
    for _ in range(3):
        _do(sessions, _take(sessions))
    task = _take(sessions)
    with sessions.begin() as session:
        job = jobs.lock(session, job_id)
        queue.finish(session, task.id, task.fence)
        jobs.partition_lost(session, job, jobs.partition(session, job_id, jobs.SCORE, 1))
    row = _parts(sessions, job_id)[1]
    assert (row.result, row.finished_at, row.rows, row.failed, row.failures) == (None, None, 0, 0, 1)
    assert _waiting(sessions) == [(jobs.PARTITION, f"{job_id}/score/1")]
    _do(sessions, _take(sessions))
    assert _waiting(sessions) == [(jobs.ASSEMBLE, str(job_id))]
    with db.reading(sessions) as session:
        assert progress.of(session, [job_id])[job_id].rows_done == 27


def test_jobs_come_newest_first_page_by_page(sessions: Sessions) -> None:
    ids = [_create(sessions, model) for model in ("a", "b", "a", None, "a")]
    _cancel(sessions, ids[2])
    with db.reading(sessions) as session:
        found, token = [], None
        for _ in range(3):
            page = jobs.search(session, page_size=2, page_token=token)
            found.append([j.id for j in page.items])
            token = page.next_token
        assert found == [[ids[4], ids[3]], [ids[2], ids[1]], [ids[0]]]
        assert token is None

        def ids_of(**which: object) -> list[int]:
            return [j.id for j in jobs.search(session, **which).items]  # type: ignore[arg-type]

        assert ids_of(model="a") == [ids[4], ids[2], ids[0]]
        assert ids_of(state=jobs.CANCELLED) == [ids[2]]
        assert ids_of(models=["b"]) == [ids[1]]
        assert ids_of(models=["b"], model="a") == []


def test_a_job_is_forgotten_when_its_time_is_over_with_all_its_tasks(sessions: Sessions) -> None:
    kept, gone, open_one = _create(sessions), _create(sessions, keep_s=1.0), _create(sessions)
    for job_id in (kept, gone, open_one):
        _plan(sessions, job_id, PARTS[:1])
    _cancel(sessions, gone)
    _resume(sessions, gone)  # which leaves a cancelled task behind
    for job_id in (kept, gone):
        _cancel(sessions, job_id)
    with sessions.begin() as session:
        assert not retention.any_over(session)
        assert retention.forget(session) == []
        session.execute(update(JobRow).where(JobRow.id == gone).values(expires_at=now() - timedelta(1)))
    with sessions.begin() as session:
        assert retention.any_over(session)
        assert retention.forget(session) == [gone]
    with pytest.raises(NotFound), db.reading(sessions) as session:
        jobs.get(session, gone)
    with db.reading(sessions) as session:
        assert sorted(j.id for j in jobs.search(session).items) == [kept, open_one]
        subjects = session.scalars(select(TaskRow.subject)).all()
        assert session.scalar(select(func.count()).select_from(PartitionRow)) == 2
    assert {int(s.partition("/")[0]) for s in subjects} == {kept, open_one}


def test_of_forgetting_and_resuming_at_once_one_wins(sessions: Sessions) -> None:
    for _ in range(5):
        job_id = _create(sessions)
        _cancel(sessions, job_id)
        with sessions.begin() as session:
            session.execute(update(JobRow).where(JobRow.id == job_id).values(expires_at=now() - timedelta(1)))

        def forget() -> list[int]:
            with sessions.begin() as session:
                return retention.forget(session)

        forgotten, resumed = threads(forget, lambda j=job_id: _resume(sessions, j).state)  # type: ignore[misc]
        if forgotten:
            assert isinstance(resumed, NotFound)
        else:
            assert resumed == jobs.QUEUED
            assert _job(sessions, job_id).expires_at is None


def test_ending_a_job_while_its_lanes_record_does_not_deadlock(sessions: Sessions) -> None:
    """Whoever changes both locks the job first."""
    for _ in range(5):
        job_id = _create(sessions)
        _plan(sessions, job_id, [NewPartition({}) for _ in range(4)])
        tasks = [_take(sessions) for _ in range(4)]

        def beat(task: Task) -> None:
            with sessions.begin() as session:
                queue.heartbeat(session, task.id, task.fence)
                jobs.partition(session, int(task.subject.split("/")[0]), *(jobs.SCORE, 0)).rows = 5

        said = threads(
            lambda j=job_id: _cancel(sessions, j).state,  # type: ignore[misc]
            *[lambda t=t: _do(sessions, t) for t in tasks],  # type: ignore[misc]
            *[lambda t=t: beat(t) for t in tasks],  # type: ignore[misc]
        )
        assert [s for s in said if s is not None and not isinstance(s, StaleTask)] == [jobs.CANCELLED]
        assert _waiting(sessions) == []


def test_the_partitions_of_a_job_on_ray_share_one_task_and_what_is_resumed_gets_another(
    sessions: Sessions,
) -> None:
    job_id = _create(sessions, engine=jobs.RAY)
    _plan(sessions, job_id)
    assert _waiting(sessions) == [(jobs.RAY, str(job_id))]
    task = _take(sessions)
    with sessions.begin() as session:
        job = jobs.lock(session, job_id)
        row = jobs.partition(session, job_id, jobs.SCORE, 0)
        jobs.partition_done(session, job, row, rows=9, failed=1, result={"file": "part-0"})
    _cancel(sessions, job_id)
    with pytest.raises(StaleTask), sessions.begin() as session:
        queue.finish(session, task.id, task.fence)
    with sessions.begin() as session:
        jobs.resume(session, job_id)
    assert _waiting(sessions) == [(jobs.RAY, str(job_id))]
    with db.reading(sessions) as session:
        assert [p.task_id == task.id for p in jobs.partitions(session, job_id)] == [True, False, False]


def test_a_training_on_ray_shares_the_task_of_its_fits_alone(sessions: Sessions) -> None:
    job_id = _create(sessions, engine=jobs.RAY)
    _plan(sessions, job_id)
    with sessions.begin() as session:
        job = jobs.lock(session, job_id)
        jobs.plan(session, job, "03-fit", PARTS)
        jobs.plan(session, job, "04-merge", PARTS[:1])
    assert _waiting(sessions) == [(jobs.PARTITION, f"{job_id}/04-merge/0"), (jobs.RAY, str(job_id))]
