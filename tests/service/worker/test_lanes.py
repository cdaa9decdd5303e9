"""A worker's steps, taken one by one: what is tried again, what is given back, and who may say what."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import event, select, update
from sqlalchemy.exc import OperationalError, StatementError

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
from service.worker.lanes import FIRST_BACKOFF_S, MAX_BACKOFF_S, Worker
from tests.registry.helpers import threads

Do = Callable[[PartitionRow, ReportProgress], None]


class Small:
    """Four partitions of ten rows. `do` is called for each before it is done; what it raises is raised."""

    def __init__(self, parts: int = 4) -> None:
        self.parts = parts
        self.do: Do = lambda row, alive: None
        self.on_plan: Callable[[], None] = lambda: None
        self.on_assemble: Callable[[ReportProgress], None] = lambda alive: None
        self.done: list[tuple[int, int]] = []  # numbers and fences

    def plan(self, job: JobRow, alive: ReportProgress) -> PlannedStage:
        self.on_plan()
        return PlannedStage(
            jobs.SCORE_STAGE, [NewPartition({"n": n}, 10) for n in range(self.parts)], {"frozen": 1}
        )

    def partition(self, job: JobRow, row: PartitionRow, fence: int, alive: ReportProgress) -> PartitionResult:
        self.do(row, alive)
        self.done.append((row.number, fence))
        return PartitionResult(9, 1, {"file": f"{row.number}-{fence}"})

    def assemble(self, job: JobRow, pieces: Sequence[PartitionRow], alive: ReportProgress) -> JobResult:
        self.on_assemble(alive)
        return JobResult({"parts": [p.result for p in pieces]})


class Bench:
    """A worker of one lane whose every step is ours, and its registry."""

    def __init__(self, sessions: Sessions, home: Path, **settings: Any) -> None:
        self.sessions, self.work = sessions, Small()
        self.settings = Settings(home=home, batch_lanes=1, **settings)

    def worker(self) -> Worker:
        return Worker(self.settings, self.sessions, {SCORE: self.work})

    def create(self, **more: Any) -> int:
        with self.sessions.begin() as session:
            given = {"kind": SCORE, "spec": {}, "model": "fraud"} | more
            return jobs.create(session, NewJob(**given), by="ann").id

    def planned(self, **more: Any) -> int:
        job_id = self.create(**more)
        self.worker().step()
        assert self.job(job_id).state == jobs.RUNNING
        return job_id

    def run(self, job_id: int, worker: Worker | None = None, steps: int = 60) -> JobRow:
        """Work until the job has ended; what is to be tried again later is tried now."""
        worker = worker or self.worker()
        for _ in range(steps):
            if self.job(job_id).state not in jobs.OPEN_STATES:
                break
            self.hurry()
            worker.step()
        return self.job(job_id)

    def hurry(self) -> None:
        with self.sessions.begin() as session:
            session.execute(update(TaskRow).values(not_before=now() - timedelta(hours=1)))

    def lapse(self) -> None:
        """As if every worker had been silent for an hour."""
        with self.sessions.begin() as session:
            past = now() - timedelta(hours=1)
            session.execute(update(TaskRow).where(TaskRow.state == "running").values(lease_until=past))

    def job(self, job_id: int) -> JobRow:
        with db.reading(self.sessions) as session:
            return jobs.get(session, job_id)

    def parts(self, job_id: int) -> list[PartitionRow]:
        with db.reading(self.sessions) as session:
            return jobs.partitions(session, job_id)

    def shown(self, job_id: int) -> list[PartitionRecord]:
        """The partitions as the API shows them."""
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
def bench(sessions: Sessions, tmp_path: Path) -> Bench:
    return Bench(sessions, tmp_path)


def failing(error: Exception, times: int = 1, number: int = 1) -> Do:
    left = times

    def do(row: PartitionRow, alive: ReportProgress) -> None:
        nonlocal left
        if row.number == number and left:
            left -= 1
            raise error

    return do


def test_a_job_is_planned_worked_on_and_assembled(bench: Bench) -> None:
    job_id = bench.create()
    bench.settings.job_directory(job_id).mkdir(parents=True)
    job = bench.run(job_id)
    assert (job.state, job.error, job.plan) == (jobs.DONE, None, {"frozen": 1})
    assert job.manifest == {"parts": [{"file": f"{n}-1"} for n in range(4)]}
    assert job.created_at <= job.started_at <= job.finished_at  # type: ignore[operator]
    assert bench.work.done == [(n, 1) for n in range(4)]
    parts = bench.parts(job_id)
    assert {(p.rows, p.failed, p.failures) for p in parts} == {(9, 1, 0)}
    assert all(p.worker and p.started_at <= p.finished_at for p in parts)  # type: ignore[operator]
    assert bench.tasks("queued") == bench.tasks("running") == []
    assert not bench.settings.job_directory(job_id).exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Invalid("odd"), ValueError("bug")])
def test_only_the_partition_that_failed_is_tried_again_after_a_pause(bench: Bench, error: Exception) -> None:
    job_id = bench.planned()
    bench.work.do = failing(error)
    worker, before = bench.worker(), now()
    for _ in range(4):
        worker.step()
    assert [n for n, _ in bench.work.done] == [0, 2, 3]
    (waiting,) = bench.tasks("queued")
    assert waiting.subject == f"{job_id}/score/1"
    assert waiting.not_before >= before + timedelta(seconds=FIRST_BACKOFF_S)
    assert str(error) in str(waiting.error)
    assert bench.parts(job_id)[1].failures == 1
    assert bench.run(job_id).state == jobs.DONE
    assert bench.work.done == [(0, 1), (2, 1), (3, 1), (1, 2)]
    assert [p.failures for p in bench.parts(job_id)] == [0, 1, 0, 0]


def test_the_pauses_grow_and_have_an_end(bench: Bench) -> None:
    job_id = bench.planned(max_attempts=20)
    bench.work.do = failing(Invalid("odd"), times=10, number=0)
    bench.work.parts = 1
    worker, pauses = bench.worker(), []
    for _ in range(10):
        bench.hurry()
        before = now()
        worker.step()
        after = now()
        task = next(t for t in bench.tasks("queued") if t.subject.endswith("/0") and t.error)
        pauses.append(((task.not_before - after).total_seconds(), (task.not_before - before).total_seconds()))
        with bench.sessions.begin() as session:  # nothing else is done meanwhile
            others = TaskRow.subject != task.subject
            session.execute(update(TaskRow).where(others).values(state="cancelled"))
    meant = [min(FIRST_BACKOFF_S * 2**n, MAX_BACKOFF_S) for n in range(10)]
    assert [least <= pause <= most for pause, (least, most) in zip(meant, pauses, strict=True)] == [True] * 10
    assert meant[-1] == meant[-2] == MAX_BACKOFF_S
    assert bench.job(job_id).state == jobs.RUNNING


def test_a_partition_that_fails_at_every_attempt_fails_the_job_and_says_why(bench: Bench) -> None:
    job_id = bench.planned(max_attempts=3)
    bench.work.do = failing(Invalid("column x0 is missing"), times=3)
    job = bench.run(job_id)
    assert (job.state, job.error) == (jobs.FAILED, "partition score/1: column x0 is missing")
    assert bench.tasks("queued") == bench.tasks("running") == []
    assert [p.result is not None for p in bench.parts(job_id)] == [True, False, True, True]
    bench.resume(job_id)  # with attempts anew
    assert bench.run(job_id).state == jobs.DONE
    assert [n for n, _ in bench.work.done] == [0, 2, 3, 1]


@pytest.mark.parametrize(
    "error", [PermanentFailure("fraud:1 is archived"), Changed("a.csv", "it has 5 bytes now, not 7")], ids=str
)
def test_what_cannot_be_helped_is_not_tried_again(bench: Bench, error: Exception) -> None:
    job_id = bench.planned()
    bench.work.do = failing(error)
    job = bench.run(job_id)
    assert (job.state, job.error) == (jobs.FAILED, f"partition score/1: {error}")
    assert bench.parts(job_id)[1].failures == 1
    bench.resume(job_id)
    assert bench.run(job_id).state == jobs.DONE


def test_planning_and_assembling_are_tried_again_too(bench: Bench) -> None:
    failed = {"plan": 2, "assemble": 2}

    def fail(what: str) -> None:
        if failed[what]:
            failed[what] -= 1
            raise OSError(what)

    bench.work.on_plan = lambda: fail("plan")
    bench.work.on_assemble = lambda alive: fail("assemble")
    job_id = bench.create()
    assert bench.run(job_id).state == jobs.DONE
    failed["plan"] = 99
    job = bench.run(bench.create(max_attempts=2))
    assert (job.state, job.error) == (jobs.FAILED, "OSError: plan")
    failed.update(plan=0, assemble=99)
    job = bench.run(bench.create(max_attempts=2))
    assert (job.state, job.error) == (jobs.FAILED, "assemble: OSError: assemble")


def test_what_a_partition_needs_and_does_not_find_is_a_failure_of_it(bench: Bench) -> None:
    job_id = bench.planned(max_attempts=2)
    bench.work.do = failing(NotFound("artifact", "abc"), times=2)
    job = bench.run(job_id)
    assert (job.state, job.error) == (jobs.FAILED, "partition score/1: there is no artifact 'abc'")


def test_what_has_to_wait_counts_no_attempt(bench: Bench) -> None:
    job_id = bench.planned(max_attempts=1)
    bench.work.do = failing(RetryLater(30.0), times=5, number=0)
    worker = bench.worker()
    worker.step()
    first = next(t for t in bench.tasks("queued") if t.subject.endswith("/0"))
    assert (first.attempt, bench.parts(job_id)[0].failures) == (0, 0)
    assert first.not_before - now() > timedelta(seconds=20)
    assert bench.run(job_id).state == jobs.DONE


def test_the_databases_trouble_is_no_failure_of_a_partition(bench: Bench) -> None:
    job_id = bench.planned(max_attempts=1)
    bench.work.do = failing(OperationalError("UPDATE", {}, Exception("database is locked")))
    assert bench.run(job_id).state == jobs.DONE
    assert [p.failures for p in bench.parts(job_id)] == [0] * 4


def test_a_worker_that_is_stopped_gives_back_what_it_holds_and_takes_no_more(bench: Bench) -> None:
    job_id = bench.planned()
    worker = bench.worker()

    def stopped(row: PartitionRow, alive: ReportProgress) -> None:
        worker.stop(0.0)
        alive(5, 0)

    bench.work.do = stopped
    worker.step()
    worker.step()
    task = bench.tasks("queued")[0]
    assert (task.attempt, task.claimed_by, task.error) == (0, None, None)
    assert len(bench.tasks("queued")) == 4
    assert bench.work.done == []
    bench.work.do = lambda row, alive: None
    assert bench.run(job_id).state == jobs.DONE


def test_what_breaks_while_a_worker_stops_is_no_failure(bench: Bench) -> None:
    """Models are closed under lanes that do not come to an end."""
    bench.planned(max_attempts=1)
    worker = bench.worker()

    def closed(row: PartitionRow, alive: ReportProgress) -> None:
        worker.stop(0.0)
        raise ValueError("the runtime was closed")

    bench.work.do = closed
    worker.step()
    assert [(t.attempt, t.error) for t in bench.tasks("queued")] == [(0, None)] * 4


def test_lanes_end_with_the_worker_and_the_leases_are_kept_until_then(bench: Bench) -> None:
    job_id = bench.planned()
    inside, go_on = threading.Event(), threading.Event()

    def wait(row: PartitionRow, alive: ReportProgress) -> None:
        inside.set()
        assert go_on.wait(60)
        alive(1, 0)

    bench.work.do = wait
    worker = bench.worker()
    worker.start()
    assert inside.wait(60)
    stopping = threading.Thread(target=worker.stop, args=(60.0,))
    stopping.start()
    bench.lapse()
    until = time.monotonic() + 20
    while bench.tasks("running")[0].lease_until < now():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.01)
    assert stopping.is_alive()
    go_on.set()
    stopping.join(60)
    assert not stopping.is_alive()
    assert [t.attempt for t in bench.tasks("queued")] == [0] * 4
    assert bench.job(job_id).state == jobs.RUNNING


def test_a_beat_keeps_a_slow_partition_and_says_how_far_it_is(bench: Bench) -> None:
    job_id = bench.planned()
    worker, other = bench.worker(), bench.worker()

    def slow(row: PartitionRow, alive: ReportProgress) -> None:
        if row.number == 0:
            bench.lapse()
            alive(4, 3)
            worker.heartbeat()
            (task,) = bench.tasks("running")
            assert timedelta(0) < task.lease_until - now() <= timedelta(seconds=queue.JOB_LEASE_S)  # type: ignore[operator]
            for _ in range(4):
                other.step()  # does the others, and finds nothing more
            row = bench.parts(job_id)[0]
            assert (row.rows, row.failed, row.result) == (4, 3, None)

    bench.work.do = slow
    worker.step()
    assert bench.work.done == [(1, 1), (2, 1), (3, 1), (0, 1)]


def test_who_slept_through_a_lease_changes_nothing(bench: Bench) -> None:
    job_id = bench.planned(max_attempts=1)
    worker, other = bench.worker(), bench.worker()
    late = bench.settings.job_directory(job_id)

    def sleepy(row: PartitionRow, alive: ReportProgress) -> None:
        if row.number == 0 and not bench.work.done:
            bench.lapse()
            for _ in range(5):  # the other three, then this one, and the assembly
                other.step()
            assert bench.job(job_id).state == jobs.DONE
            late.mkdir(parents=True)
            worker.heartbeat()
            with pytest.raises(Exception, match="held by another worker now"):
                alive(1, 0)
            # and goes on all the same

    bench.work.do = sleepy
    worker.step()
    job = bench.job(job_id)
    assert bench.work.done == [(1, 1), (2, 1), (3, 1), (0, 2), (0, 1)]
    assert (job.state, job.manifest) == (
        jobs.DONE,
        {"parts": [{"file": f"{n}-{1 + (n == 0)}"} for n in range(4)]},
    )
    assert bench.parts(job_id)[0].result == {"file": "0-2"}
    assert not late.exists()


@pytest.mark.parametrize("broken", [OSError("no such file"), None])
def test_who_holds_a_partition_of_a_cancelled_job_changes_nothing(
    bench: Bench, broken: Exception | None
) -> None:
    job_id = bench.planned()

    def cancelled(row: PartitionRow, alive: ReportProgress) -> None:
        bench.cancel(job_id)
        if broken:
            raise broken

    bench.work.do = cancelled
    bench.worker().step()
    assert bench.job(job_id).state == jobs.CANCELLED
    assert [(p.result, p.failures) for p in bench.parts(job_id)] == [(None, 0)] * 4
    bench.work.do = lambda row, alive: None
    bench.resume(job_id)
    assert bench.run(job_id).state == jobs.DONE
    assert bench.work.done[-4:] == [(0, 3), (1, 2), (2, 2), (3, 2)]  # never the fence of somebody else


def test_a_job_that_is_forgotten_under_its_worker_is_gone(bench: Bench) -> None:
    job_id = bench.planned()

    def forgotten(row: PartitionRow, alive: ReportProgress) -> None:
        bench.cancel(job_id)
        with bench.sessions.begin() as session:
            session.execute(update(JobRow).values(expires_at=now() - timedelta(hours=1)))
        with bench.sessions.begin() as session:
            assert jobs.delete_expired(session) == [job_id]

    bench.work.do = forgotten
    bench.worker().step()
    with pytest.raises(NotFound):
        bench.job(job_id)


def test_the_work_of_a_dead_worker_goes_on_elsewhere(bench: Bench) -> None:
    job_id = bench.planned()
    with bench.sessions.begin() as session:
        assert queue.claim(session, JOB_TASKS, "dead", queue.JOB_LEASE_S) is not None
    assert bench.run(job_id, steps=4).state == jobs.RUNNING  # its lease has not run out
    assert [n for n, _ in bench.work.done] == [1, 2, 3]
    bench.lapse()
    assert bench.run(job_id).state == jobs.DONE
    assert bench.work.done[-1] == (0, 2)
    assert bench.parts(job_id)[0].failures == 0


def test_a_job_that_is_cancelled_at_work_says_nothing_of_dead_workers(bench: Bench) -> None:
    job_id = bench.planned()
    with bench.sessions.begin() as session:
        assert queue.claim(session, JOB_TASKS, "alive", queue.JOB_LEASE_S) is not None
        jobs.cancel(session, job_id)
    found = bench.shown(job_id)
    assert (found[0].state, found[0].attempts, found[0].error) == ("cancelled", 1, None)


def test_a_job_at_which_workers_die_and_die_has_failed_and_says_so(bench: Bench) -> None:
    job_id = bench.planned(max_attempts=1)
    for _ in range(1 + jobs.MAX_LOST_WORKERS):
        with bench.sessions.begin() as session:
            session.execute(
                update(TaskRow).where(TaskRow.subject != f"{job_id}/score/2").values(state="cancelled")
            )
            assert queue.claim(session, JOB_TASKS, "dead", queue.JOB_LEASE_S) is not None
        bench.lapse()
    troubles = [p.error for p in bench.shown(job_id)]
    said = (
        f"{jobs.MAX_LOST_WORKERS} workers died on this partition; the job fails after {jobs.MAX_LOST_WORKERS}"
    )
    assert [t for t in troubles if t is not None] == [troubles[2]] == [said]
    bench.worker().step()
    job = bench.job(job_id)
    said = f"partition {job_id}/score/2: the worker died at each of {1 + jobs.MAX_LOST_WORKERS} attempts"
    assert (job.state, job.error) == (jobs.FAILED, said)


def test_workers_that_die_over_the_plan_use_up_no_attempt_of_it(bench: Bench) -> None:
    job_id = bench.create(max_attempts=2)
    for _ in range(3):
        with bench.sessions.begin() as session:
            assert queue.claim(session, JOB_TASKS, "dead", queue.JOB_LEASE_S) is not None
        bench.lapse()
    fails = [OSError("the disk is away")]

    def plan() -> None:
        if fails:
            raise fails.pop()

    bench.work.on_plan = plan
    worker = bench.worker()
    worker.step()
    (task,) = bench.tasks("queued")
    assert (task.attempt, task.failures, bench.job(job_id).state) == (4, 1, jobs.RUNNING)
    assert timedelta(0) < task.not_before - now() <= timedelta(seconds=FIRST_BACKOFF_S)
    assert bench.run(job_id).state == jobs.DONE


def test_what_the_database_says_of_its_statement_is_for_the_log(bench: Bench) -> None:
    job_id = bench.create(max_attempts=1)

    def plan() -> None:
        raise StatementError("odd", "UPDATE secret SET x = ?", ("y",), ValueError("no such thing"))

    bench.work.on_plan = plan
    assert bench.run(job_id).error == "ValueError: no such thing"


def test_a_plan_that_cannot_be_read_needs_a_new_job(bench: Bench) -> None:
    job_id = bench.planned()

    def unread(row: PartitionRow, alive: ReportProgress) -> None:
        raise msgspec.ValidationError("Object missing required field `schema`")

    bench.work.do = unread
    bench.worker().step()
    job = bench.job(job_id)
    assert job.state == jobs.FAILED
    assert "another release planned this job" in str(job.error)
    assert "start a new job" in str(job.error)


def test_of_one_model_no_more_partitions_run_than_are_allowed(sessions: Sessions, tmp_path: Path) -> None:
    bench = Bench(sessions, tmp_path, batch_lanes_per_model=1)
    first, other = bench.planned(), bench.planned(model="other")
    seen: list[str] = []

    def look(row: PartitionRow, alive: ReportProgress) -> None:
        if not seen:
            seen.append("inside")
            bench.worker().step()  # a second lane: takes the other model's
            bench.worker().step()
            seen.extend(t.subject for t in bench.tasks("done") if t.kind == PARTITION_TASK)

    bench.work.do = look
    bench.worker().step()
    assert seen == ["inside", f"{other}/score/0", f"{other}/score/1"]
    assert bench.run(first).state == jobs.DONE


def test_what_is_gone_at_the_assembly_is_made_again(bench: Bench) -> None:
    job_id, gone = bench.planned(), [PartsMissing([(jobs.SCORE_STAGE, 1), (jobs.SCORE_STAGE, 3)])]

    def assemble(alive: ReportProgress) -> None:
        if gone:
            raise gone.pop()

    bench.work.on_assemble = assemble
    job = bench.run(job_id)
    assert job.state == jobs.DONE
    assert job.manifest == {"parts": [{"file": f"{n}-{1 + n % 2}"} for n in range(4)]}
    assert bench.work.done[4:] == [(1, 2), (3, 2)]


def test_what_is_gone_again_and_again_fails_the_job(bench: Bench) -> None:
    def assemble(alive: ReportProgress) -> None:
        raise PartsMissing([(jobs.SCORE_STAGE, 1)])

    bench.work.on_assemble = assemble
    job_id = bench.planned(max_attempts=2)
    job = bench.run(job_id)
    assert (job.state, job.error) == (jobs.FAILED, "the files of 1 partitions are missing or truncated (1)")
    assert bench.tasks("queued") == []
    bench.work.on_assemble = lambda alive: None
    bench.resume(job_id)
    assert bench.run(job_id).state == jobs.DONE
    assert [n for n, _ in bench.work.done] == [0, 1, 2, 3, 1, 1]


def test_lanes_that_end_at_once_enqueue_one_assembly_and_a_cancel_between_them_holds(bench: Bench) -> None:
    for _ in range(3):
        job_id = bench.planned()
        gate = threading.Barrier(4)
        bench.work.do = lambda row, alive, g=gate: (g.wait(60), None)[1]  # type: ignore[misc]
        worker = bench.worker()
        threads(*[worker.step] * 4)
        assert [t.kind for t in bench.tasks("queued")] == [ASSEMBLE_TASK]
        assert bench.run(job_id).state == jobs.DONE

        job_id = bench.planned()
        gate = threading.Barrier(5)
        bench.work.do = lambda row, alive, g=gate: (g.wait(60), None)[1]  # type: ignore[misc]
        worker = bench.worker()

        def cancel(job_id: int = job_id, gate: threading.Barrier = gate) -> None:
            gate.wait(60)
            bench.cancel(job_id)

        assert threads(*[worker.step] * 4, cancel) == [None] * 5
        assert bench.job(job_id).state == jobs.CANCELLED
        assert bench.tasks("queued") == bench.tasks("running") == []


def test_a_look_for_work_that_is_not_there_writes_nothing(bench: Bench) -> None:
    said: list[str] = []
    engine = bench.sessions.kw["bind"]
    event.listen(engine, "before_cursor_execute", lambda _c, _u, statement, *_: said.append(statement))
    bench.worker().step()
    assert said
    assert not [s for s in said if s.startswith(("UPDATE", "INSERT", "DELETE"))]
