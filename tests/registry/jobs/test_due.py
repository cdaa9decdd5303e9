"""What happens when a run is due. The moment is given: no test waits for one."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from registry import db
from registry.db import Sessions
from registry.errors import NotFound
from registry.jobs import due, jobs, schedules
from registry.jobs.recurrence import When
from registry.jobs.tables import JobRow, ScheduleRow, ScheduleRunRow
from tests.registry.helpers import processes
from tests.registry.jobs import scheduled
from tests.registry.jobs.scheduled import NOW, add, end, start

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
HOURLY = When(every_s=3600, start_at=NOW + HOUR)
BY_CRON = When(cron="0 * * * *", start_at=NOW + HOUR)


def tick(sessions: Sessions, moment: datetime) -> list[ScheduleRunRow]:
    """Tick until nothing is due."""
    made: list[ScheduleRunRow] = []
    while True:
        with sessions.begin() as session:
            found = due.tick(session, start, moment=moment)
        if found is None:
            return made
        made += found


def entries(sessions: Sessions, name: str = "weekly") -> list[ScheduleRunRow]:
    """Oldest first."""
    with db.reading(sessions) as session:
        return schedules.runs(session, name, page_size=1000).items[::-1]


def outcomes(sessions: Sessions, name: str = "weekly") -> list[tuple[str, datetime]]:
    return [(e.outcome, e.due_at) for e in entries(sessions, name)]


def next_at(sessions: Sessions, name: str = "weekly") -> datetime | None:
    with db.reading(sessions) as session:
        return schedules.get(session, name).next_at


def finish(sessions: Sessions) -> None:
    """End every job."""
    with db.reading(sessions) as session:
        found = session.scalars(select(JobRow.id).where(JobRow.state.in_(jobs.OPEN_STATES))).all()
    for job_id in found:
        end(sessions, job_id)


def test_weekly_with_the_first_run_five_seconds_from_now(sessions: Sessions) -> None:
    add(sessions, when=When(every_s=7 * 86400, start_in_s=5))
    assert tick(sessions, NOW + 4.9 * SECOND) == []
    (entry,) = tick(sessions, NOW + 5.2 * SECOND)
    assert (entry.outcome, entry.due_at, entry.at) == ("started", NOW + 5 * SECOND, NOW + 5.2 * SECOND)
    assert tick(sessions, NOW + 6 * SECOND) == []
    assert next_at(sessions) == NOW + 5 * SECOND + timedelta(days=7)
    with db.reading(sessions) as session:
        job = jobs.get(session, entry.job_id or 0)
    assert (job.schedule, job.state, job.created_by) == ("weekly", "queued", "ann")


def test_a_run_that_is_due_is_seen_by_who_only_looks(sessions: Sessions) -> None:
    add(sessions, when=HOURLY)
    with db.reading(sessions) as session:
        assert not due.is_due(session, moment=NOW)
        assert due.is_due(session, moment=NOW + HOUR)


def test_a_run_is_skipped_while_the_one_before_goes_on(sessions: Sessions) -> None:
    add(sessions, when=HOURLY)
    (first,) = tick(sessions, NOW + HOUR)
    (second,) = tick(sessions, NOW + 2 * HOUR)
    assert (second.outcome, second.job_id) == ("skipped", None)
    assert f"job {first.job_id}" in (second.reason or "")
    finish(sessions)
    (third,) = tick(sessions, NOW + 3 * HOUR)
    assert third.outcome == "started"


def test_runs_overlap_when_asked(sessions: Sessions) -> None:
    add(sessions, when=HOURLY, overlap=True)
    made = [tick(sessions, NOW + n * HOUR)[0] for n in (1, 2, 3)]
    assert len({e.job_id for e in made if e.outcome == "started"}) == 3


def test_a_run_that_was_asked_for_by_hand_counts_as_the_one_before(sessions: Sessions) -> None:
    add(sessions, when=HOURLY)
    with sessions.begin() as session:
        schedules.run_now(session, "weekly", start, by="bob")
    assert [e.outcome for e in tick(sessions, NOW + HOUR)] == ["skipped"]


def test_nothing_is_due_while_paused(sessions: Sessions) -> None:
    add(sessions, when=HOURLY, paused=True)
    assert tick(sessions, NOW + 100 * HOUR) == []


@pytest.mark.parametrize("late", [0, 30, 60])
def test_a_run_that_is_a_minute_late_still_starts(sessions: Sessions, late: float) -> None:
    add(sessions, when=HOURLY)
    assert [e.outcome for e in tick(sessions, NOW + HOUR + late * SECOND)] == ["started"]


def test_missed_runs_are_skipped_and_counted_in_one_entry(sessions: Sessions) -> None:
    add(sessions, when=HOURLY)
    (entry,) = tick(sessions, NOW + 10.5 * HOUR)
    assert (entry.outcome, entry.due_at, entry.job_id) == ("skipped", NOW + HOUR, None)
    assert "10 runs were missed" in (entry.reason or "")
    assert next_at(sessions) == NOW + 11 * HOUR
    assert tick(sessions, NOW + 10.6 * HOUR) == []


def test_the_newest_of_missed_runs_starts_when_it_is_in_time(sessions: Sessions) -> None:
    add(sessions, when=When(every_s=5, start_at=NOW))
    made = tick(sessions, NOW + 22 * SECOND)
    assert [(e.outcome, e.due_at) for e in made] == [("skipped", NOW), ("started", NOW + 20 * SECOND)]
    assert "4 runs were missed" in (made[0].reason or "")
    assert next_at(sessions) == NOW + 25 * SECOND


def test_one_missed_run_is_one(sessions: Sessions) -> None:
    add(sessions)
    (entry,) = tick(sessions, NOW + 30 * HOUR)
    assert entry.reason is not None
    assert entry.reason.startswith("1 run was missed")


def test_a_year_of_seconds_is_not_counted_to_the_end(sessions: Sessions) -> None:
    add(sessions, when=When(cron="* * * * * *"))
    made = tick(sessions, NOW + timedelta(days=365))
    assert [e.outcome for e in made] == ["skipped", "started"]
    assert f"{due.COUNTED} or more" in (made[0].reason or "")


def test_missed_runs_are_made_up_for_one_after_another(sessions: Sessions) -> None:
    add(sessions, when=HOURLY, catch_up=True)
    back = NOW + 3.5 * HOUR
    for n in (1, 2, 3):
        made = tick(sessions, back)
        assert [(e.outcome, e.due_at) for e in made] == [("started", NOW + n * HOUR)]
        assert tick(sessions, back) == []  # it waits for the job
        finish(sessions)
    assert tick(sessions, back) == []
    assert next_at(sessions) == NOW + 4 * HOUR


def test_missed_runs_that_may_overlap_start_at_once_the_oldest_first(sessions: Sessions) -> None:
    add(sessions, when=HOURLY, catch_up=True, overlap=True)
    made = tick(sessions, NOW + 3.5 * HOUR)
    assert [e.due_at for e in made] == [NOW + n * HOUR for n in (1, 2, 3)]
    ids = [e.job_id or 0 for e in made]
    assert all(a < b for a, b in pairwise(ids))


@pytest.mark.parametrize("when", [HOURLY, BY_CRON], ids=["every", "cron"])
def test_of_many_missed_runs_the_newest_hundred_are_made_up_for(sessions: Sessions, when: When) -> None:
    add(sessions, when=when, catch_up=True, overlap=True)
    made = tick(sessions, NOW + 250.5 * HOUR)
    assert Counter(e.outcome for e in made) == {"started": 100, "skipped": 1}
    assert "150 runs were missed" in (made[0].reason or "")
    started = [e.due_at for e in made[1:]]
    assert started == [NOW + n * HOUR for n in range(151, 251)]


def test_who_makes_up_for_runs_does_not_hold_up_the_others(sessions: Sessions) -> None:
    add(sessions, "behind", when=When(every_s=1, start_at=NOW), catch_up=True)
    add(sessions, "other", when=HOURLY)
    tick(sessions, NOW + 0.5 * HOUR)
    assert [e.schedule for e in tick(sessions, NOW + HOUR)] == ["other"]


def test_a_run_that_cannot_start_is_in_the_history_with_its_reason(sessions: Sessions) -> None:
    def refuse(session: Session, schedule: ScheduleRow) -> JobRow:
        start(session, schedule)  # what it did is undone
        raise NotFound("model", "fraud")

    add(sessions, when=HOURLY)
    with sessions.begin() as session:
        made = due.tick(session, refuse, moment=NOW + HOUR)
    assert made is not None
    (entry,) = entries(sessions)
    assert (entry.outcome, entry.reason, entry.job_id) == ("failed", "there is no model 'fraud'", None)
    with db.reading(sessions) as session:
        assert session.scalars(select(JobRow)).all() == []
    assert [e.outcome for e in tick(sessions, NOW + 2 * HOUR)] == ["started"]


def test_a_worker_that_dies_while_it_starts_a_run_leaves_it_due(sessions: Sessions) -> None:
    def die(session: Session, schedule: ScheduleRow) -> JobRow:
        start(session, schedule)
        raise KeyboardInterrupt

    add(sessions, when=HOURLY)
    with pytest.raises(KeyboardInterrupt), sessions.begin() as session:
        due.tick(session, die, moment=NOW + HOUR)
    assert [e.outcome for e in tick(sessions, NOW + HOUR)] == ["started"]
    assert len(entries(sessions)) == 1


def test_a_schedule_that_cannot_be_read_holds_up_nobody(sessions: Sessions) -> None:
    add(sessions, "broken", when=HOURLY)
    add(sessions, "weekly", when=When(cron="0 21 * * *"))
    with sessions.begin() as session:
        values = {"cron": "0 3 * * *", "every_s": None, "timezone": "Mars/Olympus"}
        session.execute(update(ScheduleRow).where(ScheduleRow.name == "broken").values(values))
    assert {e.schedule: e.outcome for e in tick(sessions, NOW + HOUR)} == {
        "broken": "failed",
        "weekly": "started",
    }
    assert "Mars/Olympus" in (entries(sessions, "broken")[0].reason or "")
    assert next_at(sessions, "broken") is None


@pytest.mark.parametrize("catch_up", [False, True])
def test_four_workers_start_one_job_for_each_moment(url: str, sessions: Sessions, catch_up: bool) -> None:
    names = [f"s{n}" for n in range(5)]
    for name in names:
        add(sessions, name, when=When(every_s=5, start_at=NOW), catch_up=catch_up, overlap=True)
    due_at = [NOW + n * 5 * SECOND for n in range(10)]
    processes(scheduled.work, [(url, due_at)] * 4)
    with db.reading(sessions) as session:
        runs = session.scalars(select(ScheduleRunRow).order_by(ScheduleRunRow.job_id)).all()
        ids = session.scalars(select(JobRow.id).order_by(JobRow.id)).all()
    assert [r.job_id for r in runs if r.outcome == "started"] == ids
    started = Counter((r.schedule, r.due_at) for r in runs if r.outcome == "started")
    assert set(started.values()) == {1}
    if catch_up:  # or what a worker that was ahead left behind was missed
        assert set(started) == {(name, moment) for name in names for moment in due_at}


def test_workers_never_start_two_runs_of_one_schedule_that_may_not_overlap(
    url: str, sessions: Sessions
) -> None:
    add(sessions, when=When(every_s=3600, start_at=NOW), catch_up=True)
    processes(scheduled.work, [(url, [NOW + 3 * HOUR])] * 4)
    assert outcomes(sessions) == [("started", NOW)]


@pytest.mark.parametrize("catch_up", [False, True])
def test_a_clock_that_was_years_ahead_stops_no_schedule(sessions: Sessions, catch_up: bool) -> None:
    add(sessions, when=HOURLY, catch_up=catch_up)
    assert [e.outcome for e in tick(sessions, NOW + HOUR)] == ["started"]
    finish(sessions)
    tick(sessions, NOW + timedelta(days=3650))
    finish(sessions)
    (entry,) = tick(sessions, NOW + 1.5 * HOUR)
    assert "clock was set back" in (entry.reason or "")
    assert next_at(sessions) == NOW + 2 * HOUR
    assert [(e.outcome, e.due_at) for e in tick(sessions, NOW + 2 * HOUR)] == [("started", NOW + 2 * HOUR)]


def test_a_run_that_a_fast_clock_started_is_not_started_again(sessions: Sessions) -> None:
    add(sessions, when=HOURLY)
    (early,) = tick(sessions, NOW + HOUR + SECOND)  # by a clock that is half an hour fast
    finish(sessions)
    tick(sessions, NOW + 0.5 * HOUR)
    assert next_at(sessions) == NOW + 2 * HOUR
    assert tick(sessions, NOW + HOUR) == []
    (again,) = tick(sessions, NOW + 2 * HOUR)
    assert (early.due_at, again.due_at) == (NOW + HOUR, NOW + 2 * HOUR)


def test_a_clock_that_is_a_little_back_changes_nothing(sessions: Sessions) -> None:
    add(sessions, when=HOURLY)
    tick(sessions, NOW + HOUR)
    assert tick(sessions, NOW + HOUR - 30 * SECOND) == []
    assert len(entries(sessions)) == 1


def test_without_a_given_moment_it_is_now(sessions: Sessions) -> None:
    with sessions.begin() as session:
        new = schedules.NewSchedule(name="soon", job=scheduled.JOB, when=When(every_s=60, start_in_s=0))
        schedules.create(session, new, by="ann")
    with db.reading(sessions) as session:
        assert due.is_due(session)
    with sessions.begin() as session:
        made: Any = due.tick(session, start)
    assert [e.outcome for e in made] == ["started"]
