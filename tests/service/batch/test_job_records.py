"""Figures in the records of jobs: rows, rates and the time left, from the first partition to the last."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from registry.jobs import jobs
from registry.jobs.jobs import JobProgress, PartitionSummary
from registry.jobs.tables import JobRow
from registry.vocabulary import LOCAL, PARTITION_TASK, RAY_TASK, SCORE, TRAIN
from service.batch import job_records

NOW = datetime(2026, 11, 22, 20, tzinfo=UTC)
STARTED = NOW - timedelta(seconds=10)


@pytest.fixture(autouse=True)
def _fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_records, "now", lambda: NOW)


def job(**fields: Any) -> JobRow:
    values: dict[str, Any] = {
        "id": 5, "kind": SCORE, "state": jobs.RUNNING, "engine": LOCAL, "spec": {"input": {"uri": "/data"}},
        "model": "m", "max_attempts": 3, "created_at": STARTED, "created_by": "ann", "started_at": STARTED,
        "plan": {"dataset": {"files": [{"name": "a.csv"}, {"name": "b.csv"}]}},
    }  # fmt: skip
    return JobRow(**values | fields)


def figures(progress: JobProgress | None, **fields: Any) -> tuple[float | None, float | None]:
    summary = job_records.job_summary(job(**fields), progress)
    return summary.rate, summary.eta_s


def of_400_rows(done: int, failed: int, since_start: int) -> JobProgress:
    return JobProgress(
        partitions_total=4, rows_total=400, rows_done=done, rows_failed=failed, rows_since_start=since_start
    )


def of_4_partitions(done: int, since_start: int) -> JobProgress:
    """The number of rows is unknown; 50 were processed."""
    return JobProgress(
        partitions_total=4,
        partitions_done=done,
        partitions_since_start=since_start,
        rows_done=50,
        rows_since_start=50,
    )


@pytest.mark.parametrize(
    ("progress", "rate", "eta_s"),
    [
        (None, None, None),
        (of_400_rows(0, 0, 0), None, None),
        (of_400_rows(1, 0, 1), 0.1, 3990.0),
        (of_400_rows(90, 10, 100), 10.0, 30.0),
        (of_400_rows(200, 0, 100), 10.0, 20.0),  # rows of before a resume say nothing about the speed
        (of_400_rows(398, 0, 40), 4.0, 0.5),
        (of_400_rows(300, 100, 400), 40.0, 0.0),
        (of_4_partitions(0, 0), 5.0, None),
        (of_4_partitions(1, 1), 5.0, 30.0),
        (of_4_partitions(3, 1), 5.0, 10.0),
        (of_4_partitions(4, 4), 5.0, 0.0),
    ],
)
def test_a_running_job_has_a_rate_and_an_estimate(
    progress: JobProgress | None, rate: float | None, eta_s: float | None
) -> None:
    assert figures(progress) == (rate, eta_s)


def test_a_finished_job_has_its_rate_and_no_estimate() -> None:
    progress = JobProgress(partitions_total=1, rows_total=400, rows_done=100, rows_since_start=100)
    finished_at = STARTED + timedelta(seconds=4)
    for state in (jobs.DONE, jobs.FAILED, jobs.CANCELLED):
        assert figures(progress, state=state, finished_at=finished_at) == (25.0, None)
    assert figures(progress, state=jobs.QUEUED, started_at=None) == (None, None)
    assert figures(progress, kind=TRAIN) == (10.0, None)


def test_a_job_that_took_no_time_has_a_rate() -> None:
    progress = JobProgress(partitions_total=1, rows_total=1, rows_done=1, rows_since_start=1)
    assert figures(progress, started_at=NOW) == (1e6, 0.0)


def test_totals_are_unknown_until_the_job_is_planned() -> None:
    summary = job_records.job_summary(job(), None)
    assert (summary.rows_total, summary.partitions_total, summary.rows_done, summary.partitions_done) == (
        None, None, 0, 0,
    )  # fmt: skip
    summary = job_records.job_summary(job(), JobProgress(partitions_total=0, rows_total=0))
    assert (summary.rows_total, summary.partitions_total) == (0, 0)
    progress = JobProgress(partitions_total=3, partitions_done=1, rows_done=9, rows_failed=2, attempts=4)
    summary = job_records.job_summary(job(), progress)
    assert (summary.rows_total, summary.rows_done, summary.rows_failed, summary.attempts) == (None, 9, 2, 4)
    assert (summary.partitions_total, summary.partitions_done) == (3, 1)


def partition(**fields: Any) -> PartitionSummary:
    values: dict[str, Any] = {
        "stage": jobs.SCORE_STAGE, "number": 0, "part": {"file": 1}, "rows": 0, "failed": 0, "failures": 0,
        "result": None, "worker": None, "started_at": None, "finished_at": None, "task_kind": PARTITION_TASK,
        "task_state": "queued", "task_error": None, "attempt": 0,
    }  # fmt: skip
    return PartitionSummary(**values | fields)


@pytest.mark.parametrize(
    ("fields", "deaths"),
    [
        ({"attempt": 0}, 0),
        ({"attempt": 1}, 1),
        ({"attempt": 1, "task_state": "running"}, 0),
        ({"attempt": 2, "task_state": "running"}, 1),
        ({"attempt": 3, "failures": 1}, 2),
        ({"attempt": 3, "failures": 2, "task_state": "running"}, 0),
        ({"attempt": 2, "failures": 3}, 0),
        ({"attempt": 2, "task_state": "cancelled"}, 0),
        ({"attempt": 2, "task_kind": RAY_TASK}, 0),
        ({"attempt": None, "task_kind": None, "task_state": None}, 0),
    ],
)
def test_deaths_of_workers_are_attempts_that_neither_failed_nor_run(
    fields: dict[str, Any], deaths: int
) -> None:
    (record,) = job_records.job_record(job(), None, [partition(**fields)]).partitions
    assert (record.error is not None) == bool(deaths)
    assert str(deaths) in (record.error or "0")


def test_a_partition_names_its_input_file_and_its_output_until_the_assembly() -> None:
    done = partition(number=2, rows=9, failed=1, result={"file": "part-2"}, task_state="done", attempt=1)
    record = job_records.job_record(job(), None, [partition(part={"file": 0}), done])
    first, second = record.partitions
    assert (first.file, first.state, first.output) == ("a.csv", "queued", None)
    assert (second.file, second.state, second.rows, second.failed) == ("b.csv", "done", 9, 1)
    assert second.output == "/v1/jobs/5/partitions/2/output"
    (assembled,) = job_records.job_record(job(output="0" * 64), None, [done]).partitions
    assert assembled.output is None
