"""Lanes, driven step by step: retries, releases, expired leases and dead workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import delete, event, select, update
from sqlalchemy.exc import OperationalError, StatementError
from sqlalchemy.orm import Session

from registry import db, queue
from registry.db import Sessions
from registry.errors import Changed, Invalid, NotFound
from registry.jobs import jobs
from registry.jobs.jobs import NewJob, NewPartition
from registry.jobs.tables import JobRow, PartitionRow
from registry.tables import TaskRow, now
from registry.vocabulary import ASSEMBLE_TASK, JOB_TASKS, PARTITION_TASK, SCORE
from service.batch import job_records
from service.batch.job_schemas import PartitionRecord
from service.config import Settings
from service.worker.job_work import (
    JobResult,
    PartitionResult,
    PartsMissing,
    PermanentFailure,
    PlannedStage,
    ReportProgress,
    RetryLater,
)
from service.worker.lanes import FIRST_BACKOFF_S, MAX_BACKOFF_S, RunningTask, Worker
from tests.registry.helpers import threads

DAY = timedelta(days=1)
PartitionCallback = Callable[[PartitionRow, ReportProgress], None]


class FakeWork:
    """A `JobWork` with four partitions of ten rows.

    The callbacks run before each step and may raise the error of a test.
    """

    def __init__(self, parts: int = 4) -> None:
        self.parts = parts
        self.on_partition: PartitionCallback = lambda row, report_progress: None
        self.on_plan: Callable[[], None] = lambda: None
        self.on_assemble: Callable[[ReportProgress], None] = lambda report_progress: None
        self.finished: list[tuple[int, int]] = []  # numbers and fences

    def plan(self, job: JobRow, report_progress: ReportProgress) -> PlannedStage:
        self.on_plan()
        return PlannedStage(
            jobs.SCORE_STAGE, [NewPartition({"n": n}, 10) for n in range(self.parts)], {"frozen": 1}
        )

    def partition(
        self, job: JobRow, row: PartitionRow, fence: int, report_progress: ReportProgress
    ) -> PartitionResult:
        self.on_partition(row, report_progress)
        self.finished.append((row.number, fence))
        return PartitionResult(9, 1, {"file": f"{row.number}-{fence}"})

    def assemble(
        self, job: JobRow, partitions: Sequence[PartitionRow], report_progress: ReportProgress
    ) -> JobResult:
        self.on_assemble(report_progress)
        return JobResult({"parts": [p.result for p in partitions]})


class LaneBench:
    """A registry, and workers with one lane that run only when a test calls `step`."""

    def __init__(self, sessions: Sessions, home: Path, **settings: Any) -> None:
        self.sessions, self.work = sessions, FakeWork()
        self.settings = Settings(home=home, batch_lanes=1, **settings)

    def worker(self) -> Worker:
        return Worker(self.settings, self.sessions, {SCORE: self.work})

    def create(self, **fields: Any) -> int:
        with self.sessions.begin() as session:
            new = NewJob(**{"kind": SCORE, "spec": {}, "model": "fraud"} | fields)
            return jobs.create(session, new, by="ann").id

    def create_planned(self, **fields: Any) -> int:
        job_id = self.create(**fields)
        self.worker().step()
        assert self.job(job_id).state == jobs.RUNNING
        return job_id

    def run(self, job_id: int, worker: Worker | None = None, steps: int = 60) -> JobRow:
        """Run steps until the job has ended. Retries run without their pause."""
        worker = worker or self.worker()
        for _ in range(steps):
            if self.job(job_id).state not in jobs.OPEN_STATES:
                break
            self.skip_pauses()
            worker.step()
        return self.job(job_id)

    def skip_pauses(self) -> None:
        with self.sessions.begin() as session:
            session.execute(update(TaskRow).values(not_before=now() - timedelta(hours=1)))

    def expire_leases(self) -> None:
        """Act as if no worker had sent a heartbeat for an hour."""
        with self.sessions.begin() as session:
            an_hour_ago = now() - timedelta(hours=1)
            session.execute(update(TaskRow).where(TaskRow.state == "running").values(lease_until=an_hour_ago))

    def job(self, job_id: int) -> JobRow:
        with db.reading(self.sessions) as session:
            return jobs.get(session, job_id)

    def parts(self, job_id: int) -> list[PartitionRow]:
        with db.reading(self.sessions) as session:
            return jobs.partitions(session, job_id)

    def records(self, job_id: int) -> list[PartitionRecord]:
        """The partitions in the form of the API."""
        with db.reading(self.sessions) as session:
            return job_records.job_record(
                self.job(job_id), None, jobs.partition_summaries(session, job_id)
            ).partitions

    def tasks(self, state: str) -> list[TaskRow]:
        with db.reading(self.sessions) as session:
            return list(session.scalars(select(TaskRow).where(TaskRow.state == state).order_by(TaskRow.id)))

    def cancel(self, job_id: int) -> None:
        with self.sessions.begin() as session:
            jobs.cancel(session, job_id)

    def resume(self, job_id: int) -> None:
        with self.sessions.begin() as session:
            jobs.resume(session, job_id)


@pytest.fixture
def bench(sessions: Sessions, tmp_path: Path) -> LaneBench:
    return LaneBench(sessions, tmp_path)


def failing(error: Exception, times: int = 1, number: int = 1) -> PartitionCallback:
    """Raise `error` in the first `times` runs of partition `number`."""
    remaining = times

    def on_partition(row: PartitionRow, report_progress: ReportProgress) -> None:
        nonlocal remaining
        if row.number == number and remaining:
            remaining -= 1
            raise error

    return on_partition


def test_a_job_is_planned_its_partitions_run_and_it_is_assembled(bench: LaneBench) -> None:
    job_id = bench.create()
    bench.settings.job_directory(job_id).mkdir(parents=True)
    job = bench.run(job_id)
    assert (job.state, job.error, job.plan) == (jobs.DONE, None, {"frozen": 1})
    assert job.manifest == {"parts": [{"file": f"{n}-1"} for n in range(4)]}
    assert job.created_at <= job.started_at <= job.finished_at  # type: ignore[operator]
    assert bench.work.finished == [(n, 1) for n in range(4)]
    parts = bench.parts(job_id)
    assert {(p.rows, p.failed, p.failures) for p in parts} == {(9, 1, 0)}
    assert all(p.worker and p.started_at <= p.finished_at for p in parts)  # type: ignore[operator]
    assert bench.tasks("queued") == bench.tasks("running") == []
    assert not bench.settings.job_directory(job_id).exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Invalid("odd"), ValueError("bug")])
def test_only_the_failed_partition_is_retried_after_a_pause(bench: LaneBench, error: Exception) -> None:
    job_id = bench.create_planned()
    bench.work.on_partition = failing(error)
    worker, before = bench.worker(), now()
    for _ in range(4):
        worker.step()
    assert [n for n, _ in bench.work.finished] == [0, 2, 3]
    (waiting,) = bench.tasks("queued")
    assert waiting.subject == f"{job_id}/score/1"
    assert waiting.not_before >= before + timedelta(seconds=FIRST_BACKOFF_S)
    assert str(error) in str(waiting.error)
    assert bench.parts(job_id)[1].failures == 1
    assert bench.run(job_id).state == jobs.DONE
    assert bench.work.finished == [(0, 1), (2, 1), (3, 1), (1, 2)]
    assert [p.failures for p in bench.parts(job_id)] == [0, 1, 0, 0]


def test_the_pauses_between_retries_grow_up_to_a_maximum(bench: LaneBench) -> None:
    job_id = bench.create_planned(max_attempts=20)
    bench.work.on_partition = failing(Invalid("odd"), times=10, number=0)
    bench.work.parts = 1
    worker, pauses = bench.worker(), []
    for _ in range(10):
        bench.skip_pauses()
        before = now()
        worker.step()
        after = now()
        task = next(t for t in bench.tasks("queued") if t.subject.endswith("/0") and t.error)
        pauses.append(((task.not_before - after).total_seconds(), (task.not_before - before).total_seconds()))
        with bench.sessions.begin() as session:  # no other task runs in between
            others = TaskRow.subject != task.subject
            session.execute(update(TaskRow).where(others).values(state="cancelled"))
    expected_s = [min(FIRST_BACKOFF_S * 2**n, MAX_BACKOFF_S) for n in range(10)]
    assert [low <= pause <= high for pause, (low, high) in zip(expected_s, pauses, strict=True)] == [
        True
    ] * 10
    assert expected_s[-1] == expected_s[-2] == MAX_BACKOFF_S
    assert bench.job(job_id).state == jobs.RUNNING


def test_a_partition_that_fails_at_every_attempt_fails_the_job_with_its_error(bench: LaneBench) -> None:
    job_id = bench.create_planned(max_attempts=3)
    bench.work.on_partition = failing(Invalid("column x0 is missing"), times=3)
    job = bench.run(job_id)
    assert (job.state, job.error) == (jobs.FAILED, "partition score/1: column x0 is missing")
    assert bench.tasks("queued") == bench.tasks("running") == []
    assert [p.result is not None for p in bench.parts(job_id)] == [True, False, True, True]
    bench.resume(job_id)  # the attempts are counted from zero again
    assert bench.run(job_id).state == jobs.DONE
    assert [n for n, _ in bench.work.finished] == [0, 2, 3, 1]


@pytest.mark.parametrize(
    "error", [PermanentFailure("fraud:1 is archived"), Changed("a.csv", "it has 5 bytes now, not 7")], ids=str
)
def test_a_permanent_failure_is_not_retried(bench: LaneBench, error: Exception) -> None:
    job_id = bench.create_planned()
    bench.work.on_partition = failing(error)
    job = bench.run(job_id)
    assert (job.state, job.error) == (jobs.FAILED, f"partition score/1: {error}")
    assert bench.parts(job_id)[1].failures == 1
    bench.resume(job_id)
    assert bench.run(job_id).state == jobs.DONE


def test_planning_and_assembly_are_retried(bench: LaneBench) -> None:
    failures = {"plan": 2, "assemble": 2}

    def fail(step: str) -> None:
        if failures[step]:
            failures[step] -= 1
            raise OSError(step)

    bench.work.on_plan = lambda: fail("plan")
    bench.work.on_assemble = lambda report_progress: fail("assemble")
    job_id = bench.create()
    assert bench.run(job_id).state == jobs.DONE
    failures["plan"] = 99
    job = bench.run(bench.create(max_attempts=2))
    assert (job.state, job.error) == (jobs.FAILED, "OSError: plan")
    failures.update(plan=0, assemble=99)
    job = bench.run(bench.create(max_attempts=2))
    assert (job.state, job.error) == (jobs.FAILED, "assemble: OSError: assemble")


def test_a_missing_artifact_fails_the_partition(bench: LaneBench) -> None:
    job_id = bench.create_planned(max_attempts=2)
    bench.work.on_partition = failing(NotFound("artifact", "abc"), times=2)
    job = bench.run(job_id)
    assert (job.state, job.error) == (jobs.FAILED, "partition score/1: there is no artifact 'abc'")


def test_a_task_that_waits_is_released_without_counting_an_attempt(bench: LaneBench) -> None:
    job_id = bench.create_planned(max_attempts=1)
    bench.work.on_partition = failing(RetryLater(30.0), times=5, number=0)
    worker = bench.worker()
    worker.step()
    first = next(t for t in bench.tasks("queued") if t.subject.endswith("/0"))
    assert (first.attempt, bench.parts(job_id)[0].failures) == (0, 0)
    assert first.not_before - now() > timedelta(seconds=20)
    assert bench.run(job_id).state == jobs.DONE


def test_an_error_of_the_database_is_not_a_failure_of_the_partition(bench: LaneBench) -> None:
    job_id = bench.create_planned(max_attempts=1)
    bench.work.on_partition = failing(OperationalError("UPDATE", {}, Exception("database is locked")))
    assert bench.run(job_id).state == jobs.DONE
    assert [p.failures for p in bench.parts(job_id)] == [0] * 4


def test_a_stopped_worker_releases_its_task_and_claims_no_other(bench: LaneBench) -> None:
    job_id = bench.create_planned()
    worker = bench.worker()

    def stop_worker(row: PartitionRow, report_progress: ReportProgress) -> None:
        worker.stop(0.0)
        report_progress(5, 0)

    bench.work.on_partition = stop_worker
    worker.step()
    worker.step()
    task = bench.tasks("queued")[0]
    assert (task.attempt, task.claimed_by, task.error) == (0, None, None)
    assert len(bench.tasks("queued")) == 4
    assert bench.work.finished == []
    bench.work.on_partition = lambda row, report_progress: None
    assert bench.run(job_id).state == jobs.DONE


def test_an_error_during_the_shutdown_is_not_a_failure(bench: LaneBench) -> None:
    """The shutdown closes models while lanes still use them."""
    bench.create_planned(max_attempts=1)
    worker = bench.worker()

    def fail_after_stop(row: PartitionRow, report_progress: ReportProgress) -> None:
        worker.stop(0.0)
        raise ValueError("the runtime was closed")

    bench.work.on_partition = fail_after_stop
    worker.step()
    assert [(t.attempt, t.error) for t in bench.tasks("queued")] == [(0, None)] * 4


def test_leases_are_extended_until_all_lanes_have_ended(bench: LaneBench) -> None:
    job_id = bench.create_planned()
    started, may_continue = threading.Event(), threading.Event()

    def wait(row: PartitionRow, report_progress: ReportProgress) -> None:
        started.set()
        assert may_continue.wait(60)
        report_progress(1, 0)

    bench.work.on_partition = wait
    worker = bench.worker()
    worker.start()
    assert started.wait(60)
    stopping = threading.Thread(target=worker.stop, args=(60.0,))
    stopping.start()
    bench.expire_leases()
    deadline = time.monotonic() + 20
    while bench.tasks("running")[0].lease_until < now():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert stopping.is_alive()
    may_continue.set()
    stopping.join(60)
    assert not stopping.is_alive()
    assert [t.attempt for t in bench.tasks("queued")] == [0] * 4
    assert bench.job(job_id).state == jobs.RUNNING


def test_a_heartbeat_extends_the_lease_and_records_the_progress(bench: LaneBench) -> None:
    job_id = bench.create_planned()
    worker, other = bench.worker(), bench.worker()

    def run_slowly(row: PartitionRow, report_progress: ReportProgress) -> None:
        if row.number == 0:
            bench.expire_leases()
            report_progress(4, 3)
            worker.heartbeat()
            (task,) = bench.tasks("running")
            assert timedelta(0) < task.lease_until - now() <= timedelta(seconds=queue.JOB_LEASE_S)  # type: ignore[operator]
            for _ in range(4):
                other.step()  # runs the other partitions; then none is available
            row = bench.parts(job_id)[0]
            assert (row.rows, row.failed, row.result) == (4, 3, None)

    bench.work.on_partition = run_slowly
    worker.step()
    assert bench.work.finished == [(1, 1), (2, 1), (3, 1), (0, 1)]


def test_a_worker_whose_lease_expired_changes_nothing(bench: LaneBench) -> None:
    job_id = bench.create_planned(max_attempts=1)
    worker, other = bench.worker(), bench.worker()
    directory = bench.settings.job_directory(job_id)

    def outlive_lease(row: PartitionRow, report_progress: ReportProgress) -> None:
        if row.number == 0 and not bench.work.finished:
            bench.expire_leases()
            for _ in range(5):  # the other three partitions, this one, and the assembly
                other.step()
            assert bench.job(job_id).state == jobs.DONE
            directory.mkdir(parents=True)
            worker.heartbeat()
            with pytest.raises(Exception, match="no longer held by this claim"):
                report_progress(1, 0)
            # the function continues nevertheless

    bench.work.on_partition = outlive_lease
    worker.step()
    job = bench.job(job_id)
    assert bench.work.finished == [(1, 1), (2, 1), (3, 1), (0, 2), (0, 1)]
    assert (job.state, job.manifest) == (
        jobs.DONE,
        {"parts": [{"file": f"{n}-{1 + (n == 0)}"} for n in range(4)]},
    )
    assert bench.parts(job_id)[0].result == {"file": "0-2"}
    assert not directory.exists()


@pytest.mark.parametrize("error", [OSError("no such file"), None])
def test_a_running_partition_of_a_cancelled_job_changes_nothing(
    bench: LaneBench, error: Exception | None
) -> None:
    job_id = bench.create_planned()

    def cancel_job(row: PartitionRow, report_progress: ReportProgress) -> None:
        bench.cancel(job_id)
        if error:
            raise error

    bench.work.on_partition = cancel_job
    bench.worker().step()
    assert bench.job(job_id).state == jobs.CANCELLED
    assert [(p.result, p.failures) for p in bench.parts(job_id)] == [(None, 0)] * 4
    bench.work.on_partition = lambda row, report_progress: None
    bench.resume(job_id)
    assert bench.run(job_id).state == jobs.DONE
    assert bench.work.finished[-4:] == [(0, 3), (1, 2), (2, 2), (3, 2)]  # no fence is used twice


def test_a_job_that_is_deleted_while_its_partition_runs_stays_deleted(bench: LaneBench) -> None:
    job_id = bench.create_planned()

    def delete_job(row: PartitionRow, report_progress: ReportProgress) -> None:
        bench.cancel(job_id)
        with bench.sessions.begin() as session:
            session.execute(update(JobRow).values(expires_at=now() - timedelta(hours=1)))
        with bench.sessions.begin() as session:
            assert jobs.delete_expired(session) == [job_id]

    bench.work.on_partition = delete_job
    bench.worker().step()
    with pytest.raises(NotFound):
        bench.job(job_id)


def test_another_worker_continues_the_partition_of_a_dead_worker(bench: LaneBench) -> None:
    job_id = bench.create_planned()
    with bench.sessions.begin() as session:
        assert queue.claim(session, JOB_TASKS, "dead", queue.JOB_LEASE_S) is not None
    assert bench.run(job_id, steps=4).state == jobs.RUNNING  # the lease has not expired
    assert [n for n, _ in bench.work.finished] == [1, 2, 3]
    bench.expire_leases()
    assert bench.run(job_id).state == jobs.DONE
    assert bench.work.finished[-1] == (0, 2)
    assert bench.parts(job_id)[0].failures == 0


def test_a_cancelled_running_partition_does_not_count_as_a_dead_worker(bench: LaneBench) -> None:
    job_id = bench.create_planned()
    with bench.sessions.begin() as session:
        assert queue.claim(session, JOB_TASKS, "alive", queue.JOB_LEASE_S) is not None
        jobs.cancel(session, job_id)
    first = bench.records(job_id)[0]
    assert (first.state, first.attempts, first.error) == ("cancelled", 1, None)


def test_a_job_fails_after_too_many_workers_died_on_one_partition(bench: LaneBench) -> None:
    job_id = bench.create_planned(max_attempts=1)
    for _ in range(1 + jobs.MAX_LOST_WORKERS):
        with bench.sessions.begin() as session:
            session.execute(
                update(TaskRow).where(TaskRow.subject != f"{job_id}/score/2").values(state="cancelled")
            )
            assert queue.claim(session, JOB_TASKS, "dead", queue.JOB_LEASE_S) is not None
        bench.expire_leases()
    errors = [p.error for p in bench.records(job_id)]
    message = (
        f"{jobs.MAX_LOST_WORKERS} workers died on this partition; "
        f"the job fails after {1 + jobs.MAX_LOST_WORKERS} attempts in total"
    )
    assert [e for e in errors if e is not None] == [errors[2]] == [message]
    bench.worker().step()
    job = bench.job(job_id)
    reason = f"partition {job_id}/score/2: {1 + jobs.MAX_LOST_WORKERS} workers died while they ran it"
    assert (job.state, job.error) == (jobs.FAILED, reason)


def test_a_lost_task_whose_worker_is_alive_after_all_does_not_fail_its_job(
    bench: LaneBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease is extended after another worker found it lost, and before that one has locked the job."""
    job_ids = {bench.create_planned(), bench.create_planned()}
    lost = TaskRow.subject.in_([f"{job_id}/score/0" for job_id in job_ids])
    with bench.sessions.begin() as session:  # of each job, the first partition has used all its attempts
        values = {"state": "running", "fence": 1, "attempt": TaskRow.max_attempts}
        session.execute(update(TaskRow).where(lost).values(values))
    bench.expire_leases()
    lock, found = jobs.lock, []

    def lock_late(session: Session, job_id: int) -> JobRow:
        if not found:
            found.append(job_id)
            task_id = session.scalars(select(TaskRow.id).where(TaskRow.subject == f"{job_id}/score/0")).one()
            queue.heartbeat(session, task_id, 1, queue.JOB_LEASE_S)
        return lock(session, job_id)

    monkeypatch.setattr(jobs, "lock", lock_late)
    bench.worker().step()
    assert set(found) < job_ids
    assert {bench.job(job_id).state for job_id in job_ids} == {jobs.RUNNING}
    assert bench.tasks("failed") == []  # the other lost task is left for the next step
    assert [number for number, _ in bench.work.finished] == [1]
    bench.worker().step()
    failed_id = (job_ids - set(found)).pop()
    assert [t.subject for t in bench.tasks("failed")] == [f"{failed_id}/score/0"]
    assert (bench.job(failed_id).state, bench.job(found[0]).state) == (jobs.FAILED, jobs.RUNNING)


def test_a_lost_task_of_a_deleted_job_does_not_stop_the_worker(
    bench: LaneBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, other = bench.create(), bench.create()
    with bench.sessions.begin() as session:
        task = queue.claim(session, JOB_TASKS, "dead", queue.JOB_LEASE_S)
        assert task is not None
        assert task.subject == str(job_id)
        session.execute(update(TaskRow).where(TaskRow.id == task.id).values(attempt=TaskRow.max_attempts))
        session.execute(delete(JobRow).where(JobRow.id == job_id))
    bench.expire_leases()
    bench.worker().step()
    assert bench.job(other).state == jobs.RUNNING


@pytest.mark.parametrize("resumed", [False, True])
def test_a_job_cancelled_between_claim_and_start_of_its_task_does_not_start(
    bench: LaneBench, resumed: bool
) -> None:
    job_id = bench.create()
    worker = bench.worker()
    begin = worker._begin

    def cancel_first(running: RunningTask) -> tuple[JobRow, PartitionRow | None]:
        bench.cancel(job_id)
        if resumed:
            bench.resume(job_id)
        return begin(running)

    worker._begin = cancel_first  # type: ignore[method-assign]
    planned: list[bool] = []
    bench.work.on_plan = lambda: planned.append(True)
    worker.step()
    assert planned == []
    job = bench.job(job_id)
    assert (job.state, job.started_at) == (jobs.QUEUED if resumed else jobs.CANCELLED, None)
    assert len(bench.tasks("queued")) == resumed


def test_missing_parts_reported_after_the_lease_expired_change_nothing(bench: LaneBench) -> None:
    job_id = bench.create_planned()
    worker, other = bench.worker(), bench.worker()
    for _ in range(4):
        worker.step()

    def report_late(report_progress: ReportProgress) -> None:
        bench.work.on_assemble = lambda report_progress: None
        bench.expire_leases()
        other.step()
        assert bench.job(job_id).state == jobs.DONE
        raise PartsMissing([(jobs.SCORE_STAGE, 1)])

    bench.work.on_assemble = report_late
    worker.step()
    assert bench.job(job_id).state == jobs.DONE
    assert [p.failures for p in bench.parts(job_id)] == [0] * 4
    assert bench.tasks("queued") == []


def test_a_task_released_after_another_worker_claimed_it_stays_with_that_worker(bench: LaneBench) -> None:
    job_id = bench.create_planned()
    worker = bench.worker()

    def wait_too_long(row: PartitionRow, report_progress: ReportProgress) -> None:
        bench.expire_leases()
        with bench.sessions.begin() as session:
            assert queue.claim(session, JOB_TASKS, "other", queue.JOB_LEASE_S) is not None
        raise RetryLater(60.0)

    bench.work.on_partition = wait_too_long
    with bench.sessions.begin() as session:
        session.execute(
            update(TaskRow).where(TaskRow.subject != f"{job_id}/score/0").values(not_before=now() + DAY)
        )
    worker.step()
    (task,) = bench.tasks("running")
    assert (task.claimed_by, task.fence, task.attempt) == ("other", 2, 2)


def test_workers_that_die_during_planning_do_not_count_as_attempts(bench: LaneBench) -> None:
    job_id = bench.create(max_attempts=2)
    for _ in range(3):
        with bench.sessions.begin() as session:
            assert queue.claim(session, JOB_TASKS, "dead", queue.JOB_LEASE_S) is not None
        bench.expire_leases()
    errors = [OSError("the disk is unavailable")]

    def plan() -> None:
        if errors:
            raise errors.pop()

    bench.work.on_plan = plan
    worker = bench.worker()
    worker.step()
    (task,) = bench.tasks("queued")
    assert (task.attempt, task.failures, bench.job(job_id).state) == (4, 1, jobs.RUNNING)
    assert timedelta(0) < task.not_before - now() <= timedelta(seconds=FIRST_BACKOFF_S)
    assert bench.run(job_id).state == jobs.DONE


def test_the_sql_statement_of_a_database_error_is_not_in_the_record(bench: LaneBench) -> None:
    job_id = bench.create(max_attempts=1)

    def plan() -> None:
        raise StatementError("odd", "UPDATE secret SET x = ?", ("y",), ValueError("no such thing"))

    bench.work.on_plan = plan
    assert bench.run(job_id).error == "ValueError: no such thing"


def test_a_plan_of_another_release_fails_the_job(bench: LaneBench) -> None:
    job_id = bench.create_planned()

    def fail_to_decode(row: PartitionRow, report_progress: ReportProgress) -> None:
        raise msgspec.ValidationError("Object missing required field `schema`")

    bench.work.on_partition = fail_to_decode
    bench.worker().step()
    job = bench.job(job_id)
    assert job.state == jobs.FAILED
    assert "another release planned this job" in str(job.error)
    assert "start a new job" in str(job.error)


def test_partitions_per_model_are_limited(sessions: Sessions, tmp_path: Path) -> None:
    bench = LaneBench(sessions, tmp_path, batch_lanes_per_model=1)
    first, other = bench.create_planned(), bench.create_planned(model="other")
    log: list[str] = []

    def run_others(row: PartitionRow, report_progress: ReportProgress) -> None:
        if not log:
            log.append("started")
            bench.worker().step()  # a second lane: it claims partitions of the other model
            bench.worker().step()
            log.extend(t.subject for t in bench.tasks("done") if t.kind == PARTITION_TASK)

    bench.work.on_partition = run_others
    bench.worker().step()
    assert log == ["started", f"{other}/score/0", f"{other}/score/1"]
    assert bench.run(first).state == jobs.DONE


def test_partitions_whose_files_are_missing_at_the_assembly_run_again(bench: LaneBench) -> None:
    job_id, errors = bench.create_planned(), [PartsMissing([(jobs.SCORE_STAGE, 1), (jobs.SCORE_STAGE, 3)])]

    def assemble(report_progress: ReportProgress) -> None:
        if errors:
            raise errors.pop()

    bench.work.on_assemble = assemble
    job = bench.run(job_id)
    assert job.state == jobs.DONE
    assert job.manifest == {"parts": [{"file": f"{n}-{1 + n % 2}"} for n in range(4)]}
    assert bench.work.finished[4:] == [(1, 2), (3, 2)]


def test_files_that_are_missing_repeatedly_fail_the_job(bench: LaneBench) -> None:
    def assemble(report_progress: ReportProgress) -> None:
        raise PartsMissing([(jobs.SCORE_STAGE, 1)])

    bench.work.on_assemble = assemble
    job_id = bench.create_planned(max_attempts=2)
    job = bench.run(job_id)
    assert (job.state, job.error) == (jobs.FAILED, "the files of 1 partitions are missing or truncated (1)")
    assert bench.tasks("queued") == []
    bench.work.on_assemble = lambda report_progress: None
    bench.resume(job_id)
    assert bench.run(job_id).state == jobs.DONE
    assert [n for n, _ in bench.work.finished] == [0, 1, 2, 3, 1, 1]


def test_simultaneous_lanes_enqueue_one_assembly_and_a_simultaneous_cancel_wins(bench: LaneBench) -> None:
    for _ in range(3):
        job_id = bench.create_planned()
        gate = threading.Barrier(4)
        bench.work.on_partition = lambda row, report_progress, g=gate: (g.wait(60), None)[1]  # type: ignore[misc]
        worker = bench.worker()
        threads(*[worker.step] * 4)
        assert [t.kind for t in bench.tasks("queued")] == [ASSEMBLE_TASK]
        assert bench.run(job_id).state == jobs.DONE

        job_id = bench.create_planned()
        gate = threading.Barrier(5)
        bench.work.on_partition = lambda row, report_progress, g=gate: (g.wait(60), None)[1]  # type: ignore[misc]
        worker = bench.worker()

        def cancel(job_id: int = job_id, gate: threading.Barrier = gate) -> None:
            gate.wait(60)
            bench.cancel(job_id)

        assert threads(*[worker.step] * 4, cancel) == [None] * 5
        assert bench.job(job_id).state == jobs.CANCELLED
        assert bench.tasks("queued") == bench.tasks("running") == []


def test_polling_without_tasks_writes_nothing(bench: LaneBench) -> None:
    statements: list[str] = []
    engine = bench.sessions.kw["bind"]
    event.listen(engine, "before_cursor_execute", lambda _c, _u, statement, *_: statements.append(statement))
    bench.worker().step()
    assert statements
    assert not [s for s in statements if s.startswith(("UPDATE", "INSERT", "DELETE"))]
