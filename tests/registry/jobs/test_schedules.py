"""Schedules: made, found, changed, run by hand, deleted. What is due: `test_due`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from registry import db
from registry.db import Sessions
from registry.errors import Conflict, Invalid, NotFound
from registry.jobs import jobs, schedules
from registry.jobs.recurrence import When
from registry.jobs.tables import JobRow, ScheduleRow, ScheduleRunRow
from tests.registry.helpers import threads
from tests.registry.jobs.scheduled import NOW, add, end, start

HOUR = timedelta(hours=1)


def edit(sessions: Sessions, changes: dict[str, Any], moment: datetime = NOW) -> ScheduleRow:
    with sessions.begin() as session:
        return schedules.edit(session, "weekly", changes, moment=moment)


def run_now(sessions: Sessions, name: str = "weekly") -> JobRow:
    with sessions.begin() as session:
        return schedules.run_now(session, name, start, by="bob")


def test_a_schedule_is_kept_as_it_was_asked_for(sessions: Sessions) -> None:
    job = {"kind": "score", "model": "fraud", "input": {"uri": "/data/größe.csv"}}
    add(sessions, job=job, when=When(cron="0 3 * * *", timezone="Europe/Berlin"), overlap=True)
    with db.reading(sessions) as session:
        row = schedules.get(session, "weekly")
    assert (row.job, row.cron, row.every_s, row.timezone) == (job, "0 3 * * *", None, "Europe/Berlin")
    assert (row.catch_up, row.overlap, row.paused, row.created_by) == (False, True, False, "ann")
    assert (row.start_at, row.created_at) == (NOW, NOW)
    assert row.next_at == datetime(2026, 11, 23, 2, tzinfo=UTC)


def test_a_name_is_taken_once(sessions: Sessions) -> None:
    outcomes = threads(*[lambda: add(sessions)] * 4)
    assert sorted(type(o).__name__ for o in outcomes) == ["Conflict"] * 3 + ["ScheduleRow"]
    with pytest.raises(Invalid):
        add(sessions, "Not A Name")


def test_what_is_not_there_is_said_by_name(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for call in (
            lambda: schedules.get(session, "nobody"),
            lambda: schedules.edit(session, "nobody", {"paused": True}),
            lambda: schedules.remove(session, "nobody"),
            lambda: schedules.runs(session, "nobody"),
            lambda: schedules.run_now(session, "nobody", start, by="bob"),
        ):
            with pytest.raises(NotFound, match="nobody"):
                call()


def test_schedules_have_pages_by_name(sessions: Sessions) -> None:
    for name in ("d", "b", "a", "c"):
        add(sessions, name)
    seen, token = [], None
    while True:
        with db.reading(sessions) as session:
            page = schedules.search(session, page_size=3, page_token=token)
        seen.append([s.name for s in page.items])
        if (token := page.next_token) is None:
            break
    assert seen == [["a", "b", "c"], ["d"]]


def test_only_schedules_of_some_models_are_found_when_asked(sessions: Sessions) -> None:
    add(sessions, "score", job={"kind": "score", "model": "fraud"})
    add(sessions, "train", job={"kind": "train", "publish": {"name": "fraud"}})
    add(sessions, "other", job={"kind": "score", "model": "price"})
    with db.reading(sessions) as session:
        for models, expected in [
            (["fraud"], ["score", "train"]),
            (["price", "x"], ["other"]),
            ([], []),
            (None, ["other", "score", "train"]),
        ]:
            assert [s.name for s in schedules.search(session, models=models).items] == expected


def test_a_pause_keeps_what_was_to_come(sessions: Sessions) -> None:
    made = add(sessions, when=When(cron="0 3 * * MON", start_in_s=5))
    assert edit(sessions, {"paused": True}).paused
    resumed = edit(sessions, {"paused": False})
    assert (resumed.paused, resumed.next_at) == (False, made.next_at)


def test_what_was_due_during_a_pause_was_not_missed(sessions: Sessions) -> None:
    add(sessions, when=When(every_s=3600, start_at=NOW), paused=True)
    resumed = edit(sessions, {"paused": False}, NOW + 10.5 * HOUR)
    assert resumed.next_at == NOW + 11 * HOUR
    again = edit(sessions, {"paused": False}, NOW + 10.6 * HOUR)
    assert again.next_at == NOW + 11 * HOUR


def test_one_of_cron_and_interval_takes_the_place_of_the_other(sessions: Sessions) -> None:
    add(sessions, when=When(every_s=3600, start_at=NOW))
    row = edit(sessions, {"cron": "30 20 * * *", "timezone": "Europe/Berlin"}, NOW + 0.1 * HOUR)
    assert (row.cron, row.every_s, row.timezone) == ("30 20 * * *", None, "Europe/Berlin")
    assert row.next_at == datetime(2026, 11, 23, 19, 30, tzinfo=UTC)
    row = edit(sessions, {"every_s": 60, "cron": None}, NOW + 1.01 * HOUR)
    assert (row.cron, row.every_s, row.start_at) == (None, 60, NOW)
    assert row.next_at == NOW + timedelta(minutes=61)
    row = edit(sessions, {"start_in_s": 5}, NOW)
    assert row.next_at == row.start_at == NOW + timedelta(seconds=5)


@pytest.mark.parametrize("given", [{}, {"start_in_s": 7 * 86400.0}], ids=["nobody said it", "said"])
def test_a_new_rhythm_waits_only_for_a_start_that_somebody_said(
    sessions: Sessions, given: dict[str, float]
) -> None:
    add(sessions, when=When(every_s=7 * 86400.0, **given))
    week = NOW + timedelta(days=7)
    hourly = edit(sessions, {"every_s": 3600.0})
    assert hourly.next_at == (week if given else NOW + HOUR)
    daily = edit(sessions, {"cron": "30 3 * * *"})
    assert daily.next_at is not None
    assert (daily.next_at < NOW + timedelta(days=1)) is (not given)


def test_an_edit_that_is_wrong_changes_nothing(sessions: Sessions) -> None:
    made = add(sessions)
    for wrong in (
        {"cron": "x", "paused": True},
        {"cron": "* * * * *", "every_s": 5},
        {"timezone": "Mars/Olympus"},
        {"start_in_s": 5, "start_at": NOW},
    ):
        with pytest.raises(Invalid):
            edit(sessions, wrong)
    with db.reading(sessions) as session:
        row = schedules.get(session, "weekly")
    assert (row.paused, row.cron, row.next_at) == (False, made.cron, made.next_at)


def test_a_first_run_that_was_promised_stays_when_only_the_zone_changes(sessions: Sessions) -> None:
    made = add(sessions, when=When(cron="0 2 * * *", start_in_s=3600))
    assert made.next_at == NOW + timedelta(hours=1)
    assert edit(sessions, {"timezone": "Europe/Berlin"}).next_at == made.next_at
    assert edit(sessions, {"start_in_s": 60.0}).next_at == NOW + timedelta(minutes=1)


def test_the_job_is_replaced_and_the_times_stay(sessions: Sessions) -> None:
    made = add(sessions)
    row = edit(sessions, {"job": {"kind": "score", "model": "price"}, "catch_up": True, "overlap": True})
    assert (row.job["model"], row.catch_up, row.overlap, row.next_at) == ("price", True, True, made.next_at)


def test_run_now_starts_a_job_and_the_next_run_stays(sessions: Sessions) -> None:
    made = add(sessions, paused=True)
    job = run_now(sessions)
    assert (job.state, job.schedule, job.model) == ("queued", "weekly", "fraud")
    with db.reading(sessions) as session:
        (entry,) = schedules.runs(session, "weekly").items
        assert schedules.get(session, "weekly").next_at == made.next_at
        assert schedules.last_runs(session, ["weekly", "nobody"]) == {"weekly": entry}
    assert (entry.outcome, entry.job_id, entry.reason) == ("started", job.id, "asked for by bob")


def test_run_now_does_not_overlap_unless_asked(sessions: Sessions) -> None:
    add(sessions)
    first = run_now(sessions)
    with pytest.raises(Conflict, match=f"job {first.id}"):
        run_now(sessions)
    end(sessions, first.id)
    second = run_now(sessions)
    edit(sessions, {"overlap": True})
    assert run_now(sessions).id > second.id


def test_of_many_who_run_it_now_one_does(sessions: Sessions) -> None:
    add(sessions)
    outcomes = threads(*[lambda: run_now(sessions)] * 4)
    assert sorted(type(o).__name__ for o in outcomes) == ["Conflict"] * 3 + ["JobRow"]


def test_the_history_has_pages_and_an_end(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "KEPT", 5)
    add(sessions, overlap=True)
    add(sessions, "other", overlap=True)
    run_now(sessions, "other")
    ids = [run_now(sessions).id for _ in range(7)]
    with db.reading(sessions) as session:
        page = schedules.runs(session, "weekly", page_size=3)
        rest = schedules.runs(session, "weekly", page_size=3, page_token=page.next_token)
        assert len(schedules.runs(session, "other").items) == 1
    assert [r.job_id for r in [*page.items, *rest.items]] == ids[:1:-1]
    assert rest.next_token is None


def test_a_deleted_schedule_leaves_its_jobs(sessions: Sessions) -> None:
    add(sessions)
    job = run_now(sessions)
    with sessions.begin() as session:
        schedules.remove(session, "weekly")
    with db.reading(sessions) as session:
        assert jobs.get(session, job.id).schedule == "weekly"
        assert session.scalars(select(ScheduleRunRow)).all() == []
    add(sessions)  # the name is free again


def test_the_history_outlives_its_jobs(sessions: Sessions) -> None:
    add(sessions)
    job = run_now(sessions)
    end(sessions, job.id)
    with sessions.begin() as session:
        session.get_one(JobRow, job.id).expires_at = datetime.now(UTC) - HOUR
    with sessions.begin() as session:
        assert jobs.delete_expired(session) == [job.id]
    with db.reading(sessions) as session:
        (entry,) = schedules.runs(session, "weekly").items
    assert (entry.outcome, entry.job_id) == ("started", None)
