"""The progress lines of a job, without a terminal."""

from __future__ import annotations

import pytest

from service.cli.descriptions import failure_lines
from service.cli.progress import job_progress, phase, progress_line

QUEUED = {
    "id": 7,
    "kind": "score",
    "state": "queued",
    "version": 1,
    "rows_done": 0,
    "rows_failed": 0,
    "rows_total": None,
    "partitions_total": None,
    "partitions_done": 0,
    "partitions": [],
    "rate": None,
    "eta_s": None,
}
PLANNING = QUEUED | {"state": "running"}
SCORING = PLANNING | {"partitions_total": 4, "rows_total": 1_000_000}
HALF_DONE = SCORING | {"rows_done": 499_000, "rows_failed": 1_000, "rate": 350_000.4, "eta_s": 1.4}
LONG = HALF_DONE | {"rows_total": None, "eta_s": 200.0}
ASSEMBLING = HALF_DONE | {"rows_done": 999_000, "partitions_done": 4, "eta_s": 0.0}
DONE = ASSEMBLING | {"state": "done", "eta_s": None}


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (QUEUED, "waiting for a worker"),
        (PLANNING, "planning"),
        (SCORING, "scoring, 0 of 1,000,000 rows (0%)"),
        (HALF_DONE, "scoring, 500,000 of 1,000,000 rows (50%), 1,000 failed, 350,000 rows/s, 1 s left"),
        (LONG, "scoring, 500,000 rows, 1,000 failed, 350,000 rows/s, 3 min 20 s left"),
        (
            ASSEMBLING,
            "assembling, 1,000,000 of 1,000,000 rows (100%), 1,000 failed, 350,000 rows/s, 0 s left",
        ),
        (DONE, "done, 1,000,000 of 1,000,000 rows (100%), 1,000 failed, 350,000 rows/s"),
    ],
    ids=["queued", "planning", "no rows yet", "half", "total unknown", "assembling", "done"],
)
def test_a_line_shows_phase_amount_rate_and_remaining_time(record, line):
    assert progress_line(record) == line


def test_a_line_is_printed_when_the_phase_changes():
    lines: list[str] = []
    with job_progress(lines.append) as show:
        for record in (QUEUED, PLANNING, SCORING, SCORING | {"rows_done": 10}, HALF_DONE, ASSEMBLING, DONE):
            show(record)
    assert [line.split(",")[0] for line in lines] == [
        f"job 7: {phase(record)}" for record in (QUEUED, PLANNING, SCORING, ASSEMBLING, DONE)
    ]


def test_a_job_that_has_to_be_started_anew_is_not_said_to_continue():
    failed = {"id": 7, "state": "failed", "errors": None}
    retryable = list(failure_lines(failed | {"error": "the store does not respond"}))
    assert "`trivium jobs resume 7` continues it" in retryable
    changed = list(failure_lines(failed | {"error": "'a.csv' changed: it is gone; start a new job"}))
    assert not any("resume" in line for line in changed)
