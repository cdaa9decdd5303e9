"""Stages of a training: partitions that wait for one another, and rows that are seen more than once."""

from __future__ import annotations

from registry import db, queue
from registry.db import Sessions
from registry.jobs import jobs, progress
from registry.jobs.jobs import NewJob, NewPartition
from registry.queue import Task

IN_TURN = [NewPartition({jobs.IN_TURN: True}) for _ in range(3)]


def _start(sessions: Sessions, first: tuple[str, list[NewPartition]]) -> int:
    with sessions.begin() as session:
        job = jobs.create(session, NewJob(kind=jobs.TRAIN, spec={}, model="m"), by="ann")
        queue.cancel(session, jobs.PLAN, str(job.id))
        job.state, job.plan = jobs.RUNNING, {}
        jobs.plan(session, job, *first)
        return job.id


def _claim(sessions: Sessions) -> Task | None:
    with sessions.begin() as session:
        return queue.claim(session, jobs.KINDS, "me", 60)


def _done(sessions: Sessions, task: Task, rows: int = 5) -> None:
    job_id, stage, number = task.subject.split("/")
    with sessions.begin() as session:
        job = jobs.lock(session, int(job_id))
        queue.finish(session, task.id, task.fence)
        row = jobs.partition(session, job.id, stage, int(number))
        jobs.partition_done(session, job, row, rows=rows, failed=0, result={"file": stage})


def test_a_partition_in_turn_is_enqueued_when_the_one_before_it_is_done(sessions: Sessions) -> None:
    job_id = _start(sessions, ("01-transform", IN_TURN))
    for number in range(3):
        task = _claim(sessions)
        assert task is not None
        assert task.subject == f"{job_id}/01-transform/{number}"
        assert _claim(sessions) is None, "the next one waits"
        _done(sessions, task)
    assembly = _claim(sessions)
    assert assembly is not None
    assert assembly.kind == jobs.ASSEMBLE


def test_a_job_is_resumed_with_the_partition_whose_turn_it_is(sessions: Sessions) -> None:
    job_id = _start(sessions, ("01-transform", IN_TURN))
    task = _claim(sessions)
    assert task is not None
    _done(sessions, task)
    with sessions.begin() as session:
        jobs.cancel(session, job_id)
    with sessions.begin() as session:
        jobs.resume(session, job_id)
    task = _claim(sessions)
    assert task is not None
    assert task.subject == f"{job_id}/01-transform/1"
    assert _claim(sessions) is None


def test_the_rows_of_a_training_are_those_that_it_has_read(sessions: Sessions) -> None:
    job_id = _start(sessions, (jobs.READ, [NewPartition({}, rows=5), NewPartition({})]))
    seen = []
    for stage in (None, "01-fit"):
        if stage is not None:
            with sessions.begin() as session:
                jobs.plan(session, jobs.lock(session, job_id), stage, [NewPartition({})])
        while (task := _claim(sessions)) is not None and task.kind == jobs.PARTITION:
            _done(sessions, task)
            with db.reading(sessions) as session:
                found = progress.of(session, [job_id])[job_id]
            seen.append((found.rows_done, found.rows_total, found.partitions_done, found.partitions_total))
    assert seen == [(5, None, 1, 2), (10, 10, 2, 2), (10, 10, 3, 3)]
