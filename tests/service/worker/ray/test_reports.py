"""Reports of a Ray driver as the engine records them, without Ray: the driver is a list of reports."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from sqlalchemy import select

from registry import db, queue
from registry.db import Sessions
from registry.errors import StaleTask, Unavailable
from registry.jobs import jobs
from registry.jobs.jobs import NewJob, NewPartition
from registry.jobs.tables import JobRow, PartitionRow
from registry.tables import TaskRow, now
from registry.vocabulary import ASSEMBLE_TASK, JOB_TASKS, PLAN_TASK, RAY, RAY_TASK, SCORE
from service.config import Settings
from service.worker.job_work import JobWork, PermanentFailure, RayInput
from service.worker.lanes import RunningTask
from service.worker.ray import engine
from service.worker.ray.messages import RayOrder, RayReport

pytestmark = pytest.mark.parametrize("dialect", ["sqlite"])


class PartsOnly:
    """The input on Ray of a `JobWork`."""

    def ray_input(self, job: JobRow, rows: Sequence[PartitionRow]) -> RayInput:
        return RayInput({"job": job.id}, [row.part for row in rows])


class RayJob:
    """A job of three partitions on Ray, whose task is claimed."""

    def __init__(self, sessions: Sessions, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sessions, self.orders = sessions, list[RayOrder]()
        self._monkeypatch = monkeypatch
        with sessions.begin() as session:
            job = jobs.create(session, NewJob(kind=SCORE, spec={}, model="m", engine=RAY), by="ann")
            queue.cancel(session, PLAN_TASK, str(job.id))
            job.state, job.plan, job.started_at = jobs.RUNNING, {}, now() - timedelta(seconds=1)
            parts = [NewPartition({"n": n, jobs.ON_RAY: True}) for n in range(3)]
            jobs.add_partitions(session, job, jobs.SCORE_STAGE, parts)
            self.id = job.id
        works = {SCORE: cast(JobWork, PartsOnly())}
        self.engine = engine.RayEngine(Settings(home=home), sessions, works)

    def run(self, *reports: RayReport) -> None:
        """Claim the task and run the job with a driver that sends `reports`."""
        orders = self.orders

        class ScriptedDriver:
            def __init__(self, order: RayOrder) -> None:
                orders.append(order)

            def __enter__(self) -> ScriptedDriver:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def lines(self, check: Callable[[], None]) -> Iterator[bytes]:
                for report in reports:
                    check()
                    yield msgspec.json.encode(report)

        self._monkeypatch.setattr(engine, "_Driver", ScriptedDriver)
        with self.sessions.begin() as session:
            task = queue.claim(session, (RAY_TASK,), "me", 60)
            assert task is not None
        with db.reading(self.sessions) as session:
            job = jobs.get(session, self.id)
        self.engine.run(job, RunningTask(task, threading.Event()))

    def finish(self, number: int) -> None:
        with self.sessions.begin() as session:
            row = jobs.partition(session, self.id, jobs.SCORE_STAGE, number)
            jobs.finish_partition(
                session, jobs.lock(session, self.id), row, rows=1, failed=0, result={"f": 0}
            )

    @property
    def rows(self) -> list[tuple[int, int, dict[str, Any] | None]]:
        with db.reading(self.sessions) as session:
            return [(p.rows, p.failed, p.result) for p in jobs.partitions(session, self.id)]

    @property
    def open_tasks(self) -> list[str]:
        with db.reading(self.sessions) as session:
            is_open = TaskRow.kind.in_(JOB_TASKS) & TaskRow.state.in_(("queued", "running"))
            return list(session.scalars(select(TaskRow.kind).where(is_open)))


@pytest.fixture
def ray_job(sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RayJob:
    return RayJob(sessions, tmp_path / "home", monkeypatch)


def done(number: int, rows: int = 9, failed: int = 1) -> RayReport:
    return RayReport(
        stage=jobs.SCORE_STAGE, number=number, worker=f"node:{number}", seconds=20.0,
        rows=rows, failed=failed, result={"file": f"part-{number}"},
    )  # fmt: skip


def failed(number: int, error: str, is_permanent: bool = False) -> RayReport:
    return RayReport(
        stage=jobs.SCORE_STAGE,
        number=number,
        worker="node:0",
        seconds=0.1,
        error=error,
        is_permanent=is_permanent,
    )


def test_each_report_is_recorded_and_the_last_one_finishes_the_task(ray_job: RayJob) -> None:
    ray_job.run(done(2), failed(0, "once"), done(0, rows=0, failed=0), done(1, rows=0, failed=10))
    assert ray_job.rows == [
        (0, 0, {"file": "part-0"}),
        (0, 10, {"file": "part-1"}),
        (9, 1, {"file": "part-2"}),
    ]
    assert ray_job.open_tasks == [ASSEMBLE_TASK]
    with db.reading(ray_job.sessions) as session:
        progress = jobs.progress(session, [ray_job.id])[ray_job.id]
        row = jobs.partition(session, ray_job.id, jobs.SCORE_STAGE, 2)
    assert (progress.rows_done, progress.rows_failed, progress.rows_total) == (9, 11, 20)
    assert row.worker == "node:2"
    assert row.started_at is not None
    assert row.finished_at is not None
    assert timedelta(seconds=19) < row.finished_at - row.started_at < timedelta(seconds=30)


def test_reports_after_the_last_partition_are_not_read(ray_job: RayJob) -> None:
    ray_job.run(done(0), done(1), done(2), failed(0, "too late", is_permanent=True))
    assert ray_job.open_tasks == [ASSEMBLE_TASK]


@pytest.mark.parametrize(
    ("reports", "message"),
    [
        ([], "partition 0: Ray ended before it was finished"),
        ([done(0), done(2)], "partition 1: Ray ended before it was finished"),
        ([failed(1, "no memory"), done(0), done(2)], "partition 1: no memory"),
        ([failed(1, "first"), failed(1, "second"), done(0), done(2)], "partition 1: second"),
    ],
)
def test_partitions_without_a_result_remain_for_another_attempt(
    ray_job: RayJob, reports: list[RayReport], message: str
) -> None:
    with pytest.raises(Unavailable, match=message):
        ray_job.run(*reports)
    finished = {report.number for report in reports if report.error is None}
    assert [result is not None for _, _, result in ray_job.rows] == [n in finished for n in range(3)]
    assert ray_job.open_tasks == [RAY_TASK]


def test_a_permanent_error_ends_the_run(ray_job: RayJob) -> None:
    with pytest.raises(PermanentFailure, match="partition 1: the file changed"):
        ray_job.run(done(0), failed(1, "the file changed", is_permanent=True), done(2))
    assert [result is not None for _, _, result in ray_job.rows] == [True, False, False]


def test_only_unfinished_partitions_are_sent(ray_job: RayJob) -> None:
    ray_job.finish(1)
    ray_job.run(done(0), done(2))
    (order,) = ray_job.orders
    assert [(p.number, p.fence, p.part["n"]) for p in order.partitions] == [(0, 1, 0), (2, 1, 2)]
    assert order.shared == {"job": ray_job.id}
    assert ray_job.open_tasks == [ASSEMBLE_TASK]


def test_a_cancelled_job_records_no_report(ray_job: RayJob) -> None:
    original = engine.RayEngine._order

    def cancel_after_the_order(self: engine.RayEngine, job: JobRow, fence: int) -> RayOrder:
        order = original(self, job, fence)
        with ray_job.sessions.begin() as session:
            jobs.cancel(session, job.id)
        return order

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.RayEngine, "_order", cancel_after_the_order)
        with pytest.raises(StaleTask):
            ray_job.run(done(0))
    assert [result for _, _, result in ray_job.rows] == [None] * 3
