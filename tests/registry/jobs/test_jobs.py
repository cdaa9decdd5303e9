"""Jobs: planning, partitions, assembly, end, cancel, resume, progress and deletion after expiry."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from registry import db, queue
from registry.artifacts import Store
from registry.db import Sessions
from registry.errors import Conflict, NotFound, StaleTask
from registry.jobs import jobs
from registry.jobs.jobs import NewJob, NewPartition
from registry.jobs.tables import JobRow, PartitionRow
from registry.queue import ClaimedTask
from registry.tables import TaskRow, VersionRow, now
from registry.vocabulary import (
    ASSEMBLE_TASK,
    JOB_TASKS,
    PARTITION_TASK,
    PLAN_TASK,
    RAY,
    RAY_TASK,
    SCORE,
    TRAIN,
)
from tests.registry.helpers import publish_ready, threads
from tests.registry.interleaving import never_wait, on_postgresql, run_behind

PARTS = [NewPartition({"start": n, jobs.ON_RAY: True}, rows=10) for n in range(3)]


def _create(sessions: Sessions, model: str | None = "fraud", **options: object) -> int:
    with sessions.begin() as session:
        new = NewJob(kind=SCORE, spec={"model": model}, model=model, **options)  # type: ignore[arg-type]
        return jobs.create(session, new, by="ann").id


def _claim(sessions: Sessions) -> ClaimedTask:
    task = _claim_or_none(sessions)
    assert task is not None
    return task


def _claim_or_none(sessions: Sessions) -> ClaimedTask | None:
    with sessions.begin() as session:
        return queue.claim(session, JOB_TASKS, "me", 60)


def _plan(sessions: Sessions, job_id: int, parts: Sequence[NewPartition] = PARTS) -> None:
    """Finish the planning task as a worker does."""
    task = _claim(sessions)
    assert (task.kind, task.subject) == (PLAN_TASK, str(job_id))
    with sessions.begin() as session:
        job = jobs.lock(session, job_id)
        queue.finish(session, task.id, task.fence)
        job.state, job.plan, job.started_at = jobs.RUNNING, {"frozen": True}, now()
        jobs.add_partitions(session, job, jobs.SCORE_STAGE, parts)


def _finish_partition(sessions: Sessions, task: ClaimedTask, rows: int = 9, failed: int = 1) -> None:
    job_id, stage, number = task.subject.split("/")
    with sessions.begin() as session:
        job = jobs.lock(session, int(job_id))
        queue.finish(session, task.id, task.fence)
        row = jobs.partition(session, job.id, stage, int(number))
        jobs.finish_partition(
            session, job, row, rows=rows, failed=failed, result={"file": f"part-{task.fence}"}
        )


def _assemble(sessions: Sessions) -> None:
    task = _claim(sessions)
    assert task.kind == ASSEMBLE_TASK
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


def _get_job(sessions: Sessions, job_id: int) -> JobRow:
    with db.reading(sessions) as session:
        return jobs.get(session, job_id)


def _parts(sessions: Sessions, job_id: int) -> list[PartitionRow]:
    with db.reading(sessions) as session:
        return jobs.partitions(session, job_id)


def _open_tasks(sessions: Sessions) -> list[tuple[str, str]]:
    with db.reading(sessions) as session:
        query = select(TaskRow.kind, TaskRow.subject).where(TaskRow.state.in_(("queued", "running")))
        return sorted((kind, subject) for kind, subject in session.execute(query))


def test_creating_a_job_enqueues_its_planning(sessions: Sessions) -> None:
    job_id = _create(sessions, max_attempts=2, keep_s=60.0)
    job = _get_job(sessions, job_id)
    assert (job.state, job.plan, job.created_by, job.expires_at) == (jobs.QUEUED, None, "ann", None)
    task = _claim(sessions)
    assert (task.kind, task.subject, task.max_attempts) == (PLAN_TASK, "1", 2 + jobs.MAX_LOST_WORKERS)
    with db.reading(sessions) as session:
        assert jobs.progress(session, [job_id]) == {}


def test_a_rolled_back_transaction_creates_no_job(sessions: Sessions) -> None:
    with sessions() as session:
        jobs.create(session, NewJob(kind=SCORE, spec={}, model=None), by="ann")
        session.rollback()
    assert _claim_or_none(sessions) is None


def test_a_job_keeps_the_version_it_was_created_with(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    with db.reading(sessions) as session:
        version = session.scalars(select(VersionRow).where(VersionRow.number == 1)).one()
    job = _get_job(sessions, _create(sessions, version=version))
    assert (job.version, job.version_id) == (1, version.id)


def test_a_job_runs_planning_then_partitions_then_assembly(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id)
    assert _open_tasks(sessions) == [(PARTITION_TASK, f"{job_id}/score/{n}") for n in range(3)]
    tasks = [_claim(sessions) for _ in range(3)]
    for task in reversed(tasks):  # the order does not matter
        assert (ASSEMBLE_TASK, str(job_id)) not in _open_tasks(sessions)
        _finish_partition(sessions, task)
    assert _open_tasks(sessions) == [(ASSEMBLE_TASK, str(job_id))]
    _assemble(sessions)
    assert _open_tasks(sessions) == []
    job = _get_job(sessions, job_id)
    assert job.state == jobs.DONE
    assert job.finished_at is not None
    assert job.expires_at == job.finished_at + timedelta(seconds=jobs.DEFAULT_KEEP_S)


def test_a_job_without_partitions_is_assembled_at_once(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id, [])
    assert _open_tasks(sessions) == [(ASSEMBLE_TASK, str(job_id))]


def test_planning_is_claimed_before_partitions_of_other_jobs(sessions: Sessions) -> None:
    first = _create(sessions)
    _plan(sessions, first)
    second = _create(sessions)
    _plan(sessions, second, PARTS[:1])  # claims its planning before the partitions of the first
    subjects = [_claim(sessions).subject for _ in range(4)]
    assert subjects == [f"{first}/score/{n}" for n in range(3)] + [f"{second}/score/0"]


def test_a_partition_computed_twice_counts_once(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id)
    task = _claim(sessions)
    with sessions.begin() as session:  # its lease expires, and another worker claims it
        session.execute(update(TaskRow).where(TaskRow.id == task.id).values(lease_until=now() - timedelta(1)))
    others = [_claim(sessions) for _ in range(3)]
    again = next(t for t in others if t.id == task.id)
    _finish_partition(sessions, again, rows=10, failed=0)
    with pytest.raises(StaleTask):
        _finish_partition(sessions, task, rows=1, failed=9)
    row = _parts(sessions, job_id)[0]
    assert (row.rows, row.failed, row.rows_total, row.result) == (10, 0, 10, {"file": "part-2"})
    for other in others:
        if other.id != task.id:
            _finish_partition(sessions, other)
    assert _open_tasks(sessions) == [(ASSEMBLE_TASK, str(job_id))]


def test_lanes_that_finish_at_the_same_moment_enqueue_one_assembly(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id, [NewPartition({}) for _ in range(4)])
    tasks = [_claim(sessions) for _ in range(4)]
    assert threads(*[lambda t=t: _finish_partition(sessions, t) for t in tasks]) == [None] * 4  # type: ignore[misc]
    assert _open_tasks(sessions) == [(ASSEMBLE_TASK, str(job_id))]


def test_progress_counts_rows_of_running_partitions(sessions: Sessions) -> None:
    job_id, other = _create(sessions), _create(sessions)
    _plan(sessions, job_id, [NewPartition({}, 10), NewPartition({}), NewPartition({}, 10)])
    assert _claim(sessions).kind == PLAN_TASK  # of the other job
    _finish_partition(sessions, _claim(sessions))
    with sessions.begin() as session:
        row = jobs.partition(session, job_id, jobs.SCORE_STAGE, 1)
        row.rows, row.failed = 4, 2
    with db.reading(sessions) as session:
        progress = jobs.progress(session, [job_id, other])
    assert progress == {
        job_id: jobs.JobProgress(
            partitions_total=3,
            partitions_done=1,
            rows_total=None,
            rows_done=13,
            rows_failed=3,
            attempts=1,
            rows_since_start=16,
            partitions_since_start=1,
        )
    }
    with sessions.begin() as session:
        jobs.partition(session, job_id, jobs.SCORE_STAGE, 1).rows_total = 7
    with db.reading(sessions) as session:
        assert jobs.progress(session, [job_id])[job_id].rows_total == 27


def test_rows_done_before_a_resume_do_not_count_as_rows_since_start(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id)
    _finish_partition(sessions, _claim(sessions))
    with sessions.begin() as session:  # stopped while the partition runs
        jobs.partition(session, job_id, jobs.SCORE_STAGE, 1).rows = 7
    _cancel(sessions, job_id)
    assert _resume(sessions, job_id).started_at is None
    with sessions.begin() as session:
        jobs.get(session, job_id).started_at = now()
    with db.reading(sessions) as session:
        progress = jobs.progress(session, [job_id])[job_id]
    assert (progress.rows_done, progress.partitions_done) == (9, 1)
    assert (progress.rows_since_start, progress.partitions_since_start) == (0, 0)
    _finish_partition(sessions, _claim(sessions))
    with db.reading(sessions) as session:
        progress = jobs.progress(session, [job_id])[job_id]
    assert (progress.rows_done, progress.rows_since_start, progress.partitions_since_start) == (18, 10, 1)


def test_ending_a_job_cancels_its_tasks(sessions: Sessions) -> None:
    job_id, other = _create(sessions), _create(sessions)
    _plan(sessions, job_id)
    running = next(t for t in iter(lambda: _claim_or_none(sessions), None) if t.kind == PARTITION_TASK)
    _end(sessions, job_id, jobs.FAILED, "the reason")
    job = _get_job(sessions, job_id)
    assert (job.state, job.error) == (jobs.FAILED, "the reason")
    assert _open_tasks(sessions) == [(PLAN_TASK, str(other))]
    with pytest.raises(StaleTask):
        _finish_partition(sessions, running)
    assert [p.result for p in _parts(sessions, job_id)] == [None] * 3


def test_only_queued_and_running_jobs_can_be_cancelled(sessions: Sessions) -> None:
    job_id = _create(sessions)
    assert _cancel(sessions, job_id).state == jobs.CANCELLED
    assert _open_tasks(sessions) == []
    ended = _get_job(sessions, job_id).finished_at
    assert _cancel(sessions, job_id).finished_at == ended  # a second call changes nothing
    for state in (jobs.DONE, jobs.FAILED):
        other = _create(sessions)
        _end(sessions, other, state)
        with pytest.raises(Conflict, match=f"is {state}; only a job that is queued or running"):
            _cancel(sessions, other)
    with pytest.raises(NotFound):
        _cancel(sessions, 99)


@pytest.mark.parametrize("state", [jobs.FAILED, jobs.CANCELLED])
def test_resuming_an_unplanned_job_enqueues_its_planning(sessions: Sessions, state: str) -> None:
    job_id = _create(sessions)
    _end(sessions, job_id, state, "the reason")
    job = _resume(sessions, job_id)
    assert (job.state, job.error, job.finished_at, job.expires_at) == (jobs.QUEUED, None, None, None)
    assert _open_tasks(sessions) == [(PLAN_TASK, str(job_id))]


@pytest.mark.parametrize("state", [jobs.FAILED, jobs.CANCELLED])
def test_resuming_a_job_keeps_its_finished_partitions(sessions: Sessions, state: str) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id)
    _finish_partition(sessions, _claim(sessions))
    with sessions.begin() as session:
        jobs.partition(session, job_id, jobs.SCORE_STAGE, 1).failures = 4
    _end(sessions, job_id, state)
    _resume(sessions, job_id)
    assert _open_tasks(sessions) == [(PARTITION_TASK, f"{job_id}/score/{n}") for n in (1, 2)]
    assert [p.failures for p in _parts(sessions, job_id)] == [0, 0, 0]
    for _ in range(2):
        _finish_partition(sessions, _claim(sessions))
    _assemble(sessions)
    assert _get_job(sessions, job_id).state == jobs.DONE


def test_resuming_a_job_with_all_partitions_done_enqueues_its_assembly(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id)
    for _ in range(3):
        _finish_partition(sessions, _claim(sessions))
    _end(sessions, job_id, jobs.FAILED, "no space left")
    _resume(sessions, job_id)
    assert _open_tasks(sessions) == [(ASSEMBLE_TASK, str(job_id))]


def test_open_and_done_jobs_cannot_be_resumed(sessions: Sessions) -> None:
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


def test_two_claims_of_a_partition_never_have_the_same_fence(sessions: Sessions) -> None:
    """File names contain the fence, and a stopped worker may still be writing its file."""
    job_id = _create(sessions)
    _plan(sessions, job_id, PARTS[:1])
    fences = []
    for _ in range(3):
        task = _claim(sessions)
        fences.append(task.fence)
        _cancel(sessions, job_id)
        _resume(sessions, job_id)
    task = _claim(sessions)
    _finish_partition(sessions, task)
    with sessions.begin() as session:
        job = jobs.lock(session, job_id)
        jobs.redo_partition(session, job, jobs.partition(session, job_id, jobs.SCORE_STAGE, 0))
        queue.cancel(session, ASSEMBLE_TASK, str(job_id))
    fences += [task.fence, _claim(sessions).fence]
    assert all(a < b for a, b in itertools.pairwise(fences)), fences


def test_a_partition_with_missing_files_is_repeated_and_counts_once(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id)
    for _ in range(3):
        _finish_partition(sessions, _claim(sessions))
    task = _claim(sessions)
    with sessions.begin() as session:
        job = jobs.lock(session, job_id)
        queue.finish(session, task.id, task.fence)
        jobs.redo_partition(session, job, jobs.partition(session, job_id, jobs.SCORE_STAGE, 1))
    row = _parts(sessions, job_id)[1]
    assert (row.result, row.finished_at, row.rows, row.failed, row.failures) == (None, None, 0, 0, 1)
    assert _open_tasks(sessions) == [(PARTITION_TASK, f"{job_id}/score/1")]
    _finish_partition(sessions, _claim(sessions))
    assert _open_tasks(sessions) == [(ASSEMBLE_TASK, str(job_id))]
    with db.reading(sessions) as session:
        assert jobs.progress(session, [job_id])[job_id].rows_done == 27


def test_search_returns_pages_of_jobs_newest_first(sessions: Sessions) -> None:
    ids = [_create(sessions, model) for model in ("a", "b", "a", None, "a")]
    _cancel(sessions, ids[2])
    with db.reading(sessions) as session:
        pages, token = [], None
        for _ in range(3):
            page = jobs.search(session, page_size=2, page_token=token)
            pages.append([j.id for j in page.items])
            token = page.next_token
        assert pages == [[ids[4], ids[3]], [ids[2], ids[1]], [ids[0]]]
        assert token is None

        def ids_of(**filters: object) -> list[int]:
            return [j.id for j in jobs.search(session, **filters).items]  # type: ignore[arg-type]

        assert ids_of(model="a") == [ids[4], ids[2], ids[0]]
        assert ids_of(state=jobs.CANCELLED) == [ids[2]]
        assert ids_of(models=["b"]) == [ids[1]]
        assert ids_of(models=["b"], model="a") == []


def test_an_expired_job_is_deleted_with_its_tasks(sessions: Sessions) -> None:
    unexpired, expired, open_one = _create(sessions), _create(sessions, keep_s=1.0), _create(sessions)
    for job_id in (unexpired, expired, open_one):
        _plan(sessions, job_id, PARTS[:1])
    _cancel(sessions, expired)
    _resume(sessions, expired)  # its cancelled task stays in the table
    for job_id in (unexpired, expired):
        _cancel(sessions, job_id)
    with sessions.begin() as session:
        assert not jobs.any_expired(session)
        assert jobs.delete_expired(session) == []
        session.execute(update(JobRow).where(JobRow.id == expired).values(expires_at=now() - timedelta(1)))
    with sessions.begin() as session:
        assert jobs.any_expired(session)
        assert jobs.delete_expired(session) == [expired]
    with pytest.raises(NotFound), db.reading(sessions) as session:
        jobs.get(session, expired)
    with db.reading(sessions) as session:
        assert sorted(j.id for j in jobs.search(session).items) == [unexpired, open_one]
        subjects = session.scalars(select(TaskRow.subject)).all()
        assert session.scalar(select(func.count()).select_from(PartitionRow)) == 2
    assert {int(s.partition("/")[0]) for s in subjects} == {unexpired, open_one}


def test_either_deletion_or_resume_of_an_expired_job_succeeds(sessions: Sessions) -> None:
    for _ in range(5):
        job_id = _create(sessions)
        _cancel(sessions, job_id)
        with sessions.begin() as session:
            session.execute(update(JobRow).where(JobRow.id == job_id).values(expires_at=now() - timedelta(1)))

        def delete_expired() -> list[int]:
            with sessions.begin() as session:
                return jobs.delete_expired(session)

        deleted, resumed = threads(delete_expired, lambda j=job_id: _resume(sessions, j).state)  # type: ignore[misc]
        if deleted:
            assert isinstance(resumed, NotFound)
        else:
            assert resumed == jobs.QUEUED
            assert _get_job(sessions, job_id).expires_at is None


def test_ending_a_job_while_its_lanes_record_does_not_deadlock(sessions: Sessions) -> None:
    """Both lock the job first."""
    for _ in range(5):
        job_id = _create(sessions)
        _plan(sessions, job_id, [NewPartition({}) for _ in range(4)])
        tasks = [_claim(sessions) for _ in range(4)]

        def beat(task: ClaimedTask) -> None:
            with sessions.begin() as session:
                queue.heartbeat(session, task.id, task.fence)
                jobs.partition(session, int(task.subject.split("/")[0]), *(jobs.SCORE_STAGE, 0)).rows = 5

        outcomes = threads(
            lambda j=job_id: _cancel(sessions, j).state,  # type: ignore[misc]
            *[lambda t=t: _finish_partition(sessions, t) for t in tasks],  # type: ignore[misc]
            *[lambda t=t: beat(t) for t in tasks],  # type: ignore[misc]
        )
        assert [o for o in outcomes if o is not None and not isinstance(o, StaleTask)] == [jobs.CANCELLED]
        assert _open_tasks(sessions) == []


def test_partitions_of_a_ray_job_share_one_task_and_a_resume_creates_another(
    sessions: Sessions,
) -> None:
    job_id = _create(sessions, engine=RAY)
    _plan(sessions, job_id)
    assert _open_tasks(sessions) == [(RAY_TASK, str(job_id))]
    task = _claim(sessions)
    with sessions.begin() as session:
        job = jobs.lock(session, job_id)
        row = jobs.partition(session, job_id, jobs.SCORE_STAGE, 0)
        jobs.finish_partition(session, job, row, rows=9, failed=1, result={"file": "part-0"})
    _cancel(sessions, job_id)
    with pytest.raises(StaleTask), sessions.begin() as session:
        queue.finish(session, task.id, task.fence)
    with sessions.begin() as session:
        jobs.resume(session, job_id)
    assert _open_tasks(sessions) == [(RAY_TASK, str(job_id))]
    with db.reading(sessions) as session:
        assert [p.task_id == task.id for p in jobs.partitions(session, job_id)] == [True, False, False]


def test_only_partitions_with_the_key_on_ray_share_a_task(sessions: Sessions) -> None:
    job_id = _create(sessions, engine=RAY)
    _plan(sessions, job_id)
    with sessions.begin() as session:
        job = jobs.lock(session, job_id)
        jobs.add_partitions(session, job, "03-fit", PARTS)
        jobs.add_partitions(session, job, "04-merge", [NewPartition({})])
    assert _open_tasks(sessions) == [(PARTITION_TASK, f"{job_id}/04-merge/0"), (RAY_TASK, str(job_id))]


SEQUENTIAL_PARTS = [NewPartition({jobs.SEQUENTIAL: True}) for _ in range(3)]


def _start_training(sessions: Sessions, stage: str, parts: list[NewPartition]) -> int:
    with sessions.begin() as session:
        job = jobs.create(session, NewJob(kind=TRAIN, spec={}, model="m"), by="ann")
        queue.cancel(session, PLAN_TASK, str(job.id))
        job.state, job.plan = jobs.RUNNING, {}
        jobs.add_partitions(session, job, stage, parts)
        return job.id


def test_a_sequential_partition_is_enqueued_when_the_one_before_it_is_done(sessions: Sessions) -> None:
    job_id = _start_training(sessions, "01-transform", SEQUENTIAL_PARTS)
    for number in range(3):
        task = _claim(sessions)
        assert task.subject == f"{job_id}/01-transform/{number}"
        assert _claim_or_none(sessions) is None, "the next one waits"
        _finish_partition(sessions, task)
    assert _claim(sessions).kind == ASSEMBLE_TASK


def test_a_sequential_partition_that_runs_again_does_not_repeat_the_finished_one_after_it(
    sessions: Sessions,
) -> None:
    job_id = _start_training(sessions, "01-transform", SEQUENTIAL_PARTS)
    for _ in range(3):
        _finish_partition(sessions, _claim(sessions))
    with sessions.begin() as session:
        task = queue.claim(session, JOB_TASKS, "me", 60)
        assert task is not None
        queue.finish(session, task.id, task.fence)  # the assembly that misses a file
        job = jobs.lock(session, job_id)
        jobs.redo_partition(session, job, jobs.partition(session, job_id, "01-transform", 0))
    again = _claim(sessions)
    assert again.subject == f"{job_id}/01-transform/0"
    _finish_partition(sessions, again)
    assert _claim(sessions).kind == ASSEMBLE_TASK
    assert _claim_or_none(sessions) is None


def test_resuming_a_job_enqueues_its_next_sequential_partition(sessions: Sessions) -> None:
    job_id = _start_training(sessions, "01-transform", SEQUENTIAL_PARTS)
    _finish_partition(sessions, _claim(sessions))
    _cancel(sessions, job_id)
    _resume(sessions, job_id)
    assert _claim(sessions).subject == f"{job_id}/01-transform/1"
    assert _claim_or_none(sessions) is None


def test_the_rows_of_a_job_are_those_of_its_first_stage(sessions: Sessions) -> None:
    job_id = _start_training(sessions, jobs.READ_STAGE, [NewPartition({}, rows=5), NewPartition({})])
    figures = []
    for stage in (None, "01-fit"):
        if stage is not None:
            with sessions.begin() as session:
                jobs.add_partitions(session, jobs.lock(session, job_id), stage, [NewPartition({})])
        while (task := _claim_or_none(sessions)) is not None and task.kind == PARTITION_TASK:
            _finish_partition(sessions, task, rows=5, failed=0)
            with db.reading(sessions) as session:
                p = jobs.progress(session, [job_id])[job_id]
            figures.append((p.rows_done, p.rows_total, p.partitions_done, p.partitions_total))
    assert figures == [(5, None, 1, 2), (10, 10, 2, 2), (10, 10, 3, 3)]


on_sqlite = pytest.mark.parametrize("dialect", ["sqlite"])
"""For tests of sums and limits, which are the same on both databases."""


def _progress(sessions: Sessions, job_id: int) -> jobs.JobProgress:
    with db.reading(sessions) as session:
        return jobs.progress(session, [job_id])[job_id]


def test_progress_counts_from_no_partition_to_the_last(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id)
    figures = [_progress(sessions, job_id)]
    for rows, failed in ((9, 1), (0, 0), (0, 20)):
        _finish_partition(sessions, _claim(sessions), rows=rows, failed=failed)
        figures.append(_progress(sessions, job_id))
    assert [(p.partitions_done, p.partitions_total) for p in figures] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [(p.rows_done, p.rows_failed) for p in figures] == [(0, 0), (9, 1), (9, 1), (9, 21)]
    assert [p.rows_total for p in figures] == [30, 30, 20, 30], (
        "the rows that were read replace the planned ones"
    )
    assert [p.rows_since_start for p in figures] == [0, 10, 10, 30]
    assert [p.partitions_since_start for p in figures] == [0, 1, 2, 3]


@on_sqlite
def test_partitions_without_rows_have_a_progress_of_zero(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id, [NewPartition({}, 0), NewPartition({}, 0)])
    progress = _progress(sessions, job_id)
    assert (progress.rows_total, progress.rows_done, progress.rows_failed, progress.attempts) == (0, 0, 0, 0)
    _finish_partition(sessions, _claim(sessions), rows=0, failed=0)
    progress = _progress(sessions, job_id)
    assert (progress.rows_total, progress.rows_since_start, progress.partitions_done) == (0, 0, 1)


@on_sqlite
def test_a_partition_that_ends_as_the_job_starts_counts_since_the_start(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id)
    _finish_partition(sessions, _claim(sessions))
    started_at = _get_job(sessions, job_id).started_at
    assert started_at is not None
    figures = []
    for finished_at in (started_at, started_at - timedelta(microseconds=1)):
        with sessions.begin() as session:
            jobs.partition(session, job_id, jobs.SCORE_STAGE, 0).finished_at = finished_at
        progress = _progress(sessions, job_id)
        figures.append((progress.rows_since_start, progress.partitions_since_start, progress.rows_done))
    assert figures == [(10, 1, 9), (0, 0, 9)]


@on_sqlite
def test_progress_reports_the_attempts_of_the_partition_with_the_most(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id)
    with sessions.begin() as session:
        for row, attempt in zip(jobs.partitions(session, job_id), (2, 5, 1), strict=True):
            assert row.task is not None
            row.task.attempt = attempt
    assert _progress(sessions, job_id).attempts == 5


@on_sqlite
def test_a_job_expires_at_the_moment_itself(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = _create(sessions, keep_s=60.0)
    _cancel(sessions, job_id)
    job = _get_job(sessions, job_id)
    assert job.expires_at is not None
    assert job.finished_at is not None
    assert job.expires_at - job.finished_at == timedelta(seconds=60)
    for early in (timedelta(microseconds=1), timedelta(0)):
        moment = job.expires_at - early
        monkeypatch.setattr(jobs, "now", lambda moment=moment: moment)
        with sessions.begin() as session:
            assert jobs.any_expired(session) == (not early)
            assert jobs.delete_expired(session) == ([] if early else [job_id])


@on_sqlite
def test_a_hundred_expired_jobs_are_deleted_at_once(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for _ in range(101):
            row = jobs.create(session, NewJob(kind=SCORE, spec={}, model=None), by="ann")
            row.expires_at = now() - timedelta(1)
    with sessions.begin() as session:
        assert len(jobs.delete_expired(session)) == 100
    with sessions.begin() as session:
        assert jobs.any_expired(session)
        assert len(jobs.delete_expired(session)) == 1
        assert session.scalars(select(TaskRow.id)).all() == []


@on_sqlite
def test_tasks_of_jobs_with_a_longer_number_are_not_deleted(sessions: Sessions) -> None:
    """The subjects of the tasks of job 1 are `1` and `1/...`, those of job 11 begin with the same digit."""
    with sessions.begin() as session:
        for _ in range(11):
            jobs.create(session, NewJob(kind=SCORE, spec={}, model=None), by="ann")
        jobs.add_partitions(session, jobs.get(session, 11), jobs.SCORE_STAGE, PARTS)
        jobs.add_partitions(session, jobs.get(session, 1), jobs.SCORE_STAGE, PARTS)
        jobs.get(session, 1).expires_at = now() - timedelta(1)
    with sessions.begin() as session:
        assert jobs.delete_expired(session) == [1]
    with db.reading(sessions) as session:
        subjects = session.scalars(select(TaskRow.subject)).all()
    assert sorted(subjects) == sorted([*map(str, range(2, 12)), *(f"11/score/{n}" for n in range(3))])


@on_sqlite
def test_the_first_sequential_partition_does_not_wait(sessions: Sessions) -> None:
    job_id = _start_training(sessions, "01-transform", [NewPartition({}), *SEQUENTIAL_PARTS[:2]])
    assert _open_tasks(sessions) == [(PARTITION_TASK, f"{job_id}/01-transform/0")]


@on_sqlite
def test_tasks_have_attempts_for_workers_that_die(sessions: Sessions) -> None:
    job_id = _create(sessions, max_attempts=3)
    assert jobs.attempt_limit(_get_job(sessions, job_id)) == 3 + 30
    _plan(sessions, job_id)
    ray_id = _create(sessions, engine=RAY)
    _plan(sessions, ray_id)
    with db.reading(sessions) as session:
        limits = {
            (kind, limit) for kind, limit in session.execute(select(TaskRow.kind, TaskRow.max_attempts))
        }
    assert (PARTITION_TASK, 33) in limits
    assert (RAY_TASK, 3000) in limits


@on_sqlite
def test_an_exactly_full_page_of_jobs_is_the_last(sessions: Sessions) -> None:
    ids = [_create(sessions) for _ in range(3)]
    with db.reading(sessions) as session:
        page = jobs.search(session, page_size=3)
        assert ([j.id for j in page.items], page.next_token) == (ids[::-1], None)
        page = jobs.search(session, page_size=2)
        assert [j.id for j in page.items] == ids[:0:-1]
        assert page.next_token is not None
        assert [j.id for j in jobs.search(session, page_token=page.next_token).items] == ids[:1]


@on_sqlite
def test_follow_up_jobs_are_listed_by_their_training(sessions: Sessions) -> None:
    training, other = _create(sessions), _create(sessions)
    follow_up = _create(sessions, parent_id=training)
    with db.reading(sessions) as session:
        listed = jobs.follow_up_jobs(session, [training, other])
        assert listed == {training: jobs.FollowUpJob(follow_up, jobs.QUEUED)}
        assert jobs.follow_up_jobs(session, [other]) == jobs.follow_up_jobs(session, []) == {}


@on_sqlite
def test_summaries_of_partitions_have_the_state_of_their_tasks(sessions: Sessions) -> None:
    job_id, other = _create(sessions), _create(sessions)
    _plan(sessions, job_id)
    assert _claim(sessions).kind == PLAN_TASK  # of the other job
    _finish_partition(sessions, _claim(sessions))
    with db.reading(sessions) as session:
        first, second, third = jobs.partition_summaries(session, job_id)
        assert jobs.partition_summaries(session, other) == []
    assert (first.rows, first.failed, first.task_state, first.attempt) == (9, 1, "done", 1)
    assert (second.rows, second.failed, second.task_state, second.attempt) == (0, 0, "queued", 0)
    assert [p.number for p in (first, second, third)] == [0, 1, 2]


def _expire(sessions: Sessions, *job_ids: int) -> None:
    with sessions.begin() as session:
        a_day_ago = now() - timedelta(1)
        session.execute(update(JobRow).where(JobRow.id.in_(job_ids)).values(expires_at=a_day_ago))


@on_postgresql
def test_a_locked_job_is_as_the_transaction_before_it_left_it(sessions: Sessions) -> None:
    """Routes read the job before they lock it, to check the access of the caller."""
    job_id = _create(sessions)

    def cancel_again(session: Session) -> object:
        read_before = jobs.get(session, job_id)
        assert read_before.state == jobs.QUEUED
        return jobs.cancel(session, job_id).finished_at

    outcome = run_behind(sessions, lambda session: jobs.cancel(session, job_id), cancel_again)
    assert outcome == _get_job(sessions, job_id).finished_at


@on_postgresql
def test_of_two_resumes_at_the_same_time_one_is_refused(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _cancel(sessions, job_id)

    def resume(session: Session) -> str:
        read_before = jobs.get(session, job_id)
        assert read_before.state == jobs.CANCELLED
        return jobs.resume(session, job_id).state

    assert isinstance(run_behind(sessions, resume, resume), Conflict)
    assert _open_tasks(sessions) == [(PLAN_TASK, str(job_id))]


@on_postgresql
def test_a_job_that_ends_at_the_same_time_cannot_be_cancelled(sessions: Sessions) -> None:
    job_id = _create(sessions)
    outcome = run_behind(
        sessions,
        lambda session: jobs.end(session, jobs.lock(session, job_id), jobs.DONE),
        lambda session: jobs.cancel(session, job_id),
    )
    assert isinstance(outcome, Conflict)
    assert _get_job(sessions, job_id).state == jobs.DONE


@on_postgresql
def test_the_second_of_two_last_partitions_enqueues_the_assembly(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id, PARTS[:2])
    tasks = [_claim(sessions), _claim(sessions)]

    def finish(session: Session, task: ClaimedTask) -> None:
        job = jobs.lock(session, job_id)
        queue.finish(session, task.id, task.fence)
        row = jobs.partition(session, job_id, jobs.SCORE_STAGE, int(task.subject[-1]))
        jobs.finish_partition(session, job, row, rows=1, failed=0, result={"file": "part"})

    outcome = run_behind(sessions, lambda s: finish(s, tasks[0]), lambda s: finish(s, tasks[1]))
    assert outcome is None
    assert _open_tasks(sessions) == [(ASSEMBLE_TASK, str(job_id))]


@on_postgresql
def test_a_partition_of_a_job_that_is_cancelled_at_the_same_time_is_not_recorded(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _plan(sessions, job_id)
    task = _claim(sessions)

    def finish(session: Session) -> None:
        jobs.lock(session, job_id)
        queue.finish(session, task.id, task.fence)

    assert isinstance(run_behind(sessions, lambda s: jobs.cancel(s, job_id), finish), StaleTask)
    assert _open_tasks(sessions) == []


@on_postgresql
def test_an_expired_job_that_is_being_resumed_is_not_deleted(sessions: Sessions) -> None:
    """The deletion skips it instead of waiting, and deletes the others."""
    resumed, expired = _create(sessions), _create(sessions)
    for job_id in (resumed, expired):
        _cancel(sessions, job_id)
    _expire(sessions, resumed, expired)
    with sessions.begin() as session:
        jobs.resume(session, resumed)
        with sessions.begin() as other:
            assert jobs.delete_expired(never_wait(other)) == [expired]
    assert _get_job(sessions, resumed).state == jobs.QUEUED
    with sessions.begin() as session:
        assert jobs.delete_expired(session) == []


@on_postgresql
def test_a_job_that_is_being_deleted_cannot_be_resumed(sessions: Sessions) -> None:
    job_id = _create(sessions)
    _cancel(sessions, job_id)
    _expire(sessions, job_id)
    outcome = run_behind(sessions, jobs.delete_expired, lambda session: jobs.resume(session, job_id))
    assert isinstance(outcome, NotFound)


def test_a_hundred_expired_jobs_are_deleted_at_a_time(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for _ in range(101):
            job = jobs.create(session, NewJob(kind=SCORE, spec={}, model=None), by="ann")
            job.expires_at = now() - timedelta(1)
    deleted = []
    for _ in range(3):
        with sessions.begin() as session:
            deleted.append(len(jobs.delete_expired(session)))
    assert deleted == [100, 1, 0]
