"""Schedules: records, edits, and the runs that are due. The time is passed in; no test waits for it."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from registry import db
from registry.db import Sessions
from registry.errors import Conflict, Invalid, NotFound
from registry.jobs import jobs, schedules
from registry.jobs.recurrence import Recurrence
from registry.jobs.schedules import NewSchedule
from registry.jobs.tables import JobRow, ScheduleRow, ScheduleRunRow
from registry.queue import clock
from tests.registry.helpers import processes, threads
from tests.registry.interleaving import never_wait, on_postgresql, run_behind
from tests.registry.jobs import schedule_helpers
from tests.registry.jobs.schedule_helpers import NOW, add_schedule, end_job, start_job

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
HOURLY = Recurrence(every_s=3600, start_at=NOW + HOUR)
HOURLY_CRON = Recurrence(cron="0 * * * *", start_at=NOW + HOUR)


def edit(sessions: Sessions, changes: dict[str, Any], moment: datetime = NOW, by: str = "ann") -> ScheduleRow:
    with sessions.begin() as session:
        return schedules.edit(session, "weekly", changes, by=by, moment=moment)


def run_now(sessions: Sessions, name: str = "weekly") -> JobRow:
    with sessions.begin() as session:
        return schedules.run_now(session, name, start_job, by="bob")


def test_a_schedule_stores_the_fields_it_was_created_with(sessions: Sessions) -> None:
    job = {"kind": "score", "model": "fraud", "input": {"uri": "/data/größe.csv"}}
    add_schedule(sessions, job=job, rule=Recurrence(cron="0 3 * * *", timezone="Europe/Berlin"), overlap=True)
    with db.reading(sessions) as session:
        row = schedules.get(session, "weekly")
    assert (row.job, row.cron, row.every_s, row.timezone) == (job, "0 3 * * *", None, "Europe/Berlin")
    assert (row.catch_up, row.overlap, row.paused, row.created_by) == (False, True, False, "ann")
    assert (row.start_at, row.created_at) == (NOW, NOW)
    assert row.next_at == datetime(2026, 11, 23, 2, tzinfo=UTC)


def test_a_schedule_name_is_unique_and_valid(sessions: Sessions) -> None:
    outcomes = threads(*[lambda: add_schedule(sessions)] * 4)
    assert sorted(type(o).__name__ for o in outcomes) == ["Conflict"] * 3 + ["ScheduleRow"]
    with pytest.raises(Invalid):
        add_schedule(sessions, "Not A Name")


def test_an_unknown_schedule_is_not_found(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for call in (
            lambda: schedules.get(session, "missing"),
            lambda: schedules.edit(session, "missing", {"paused": True}, by="ann"),
            lambda: schedules.remove(session, "missing"),
            lambda: schedules.runs(session, "missing"),
            lambda: schedules.run_now(session, "missing", start_job, by="bob"),
        ):
            with pytest.raises(NotFound, match="missing"):
                call()


def test_search_returns_pages_of_schedules_by_name(sessions: Sessions) -> None:
    for name in ("d", "b", "a", "c"):
        add_schedule(sessions, name)
    pages, token = [], None
    while True:
        with db.reading(sessions) as session:
            page = schedules.search(session, model_paths={}, page_size=3, page_token=token)
        pages.append([s.name for s in page.items])
        if (token := page.next_token) is None:
            break
    assert pages == [["a", "b", "c"], ["d"]]


MODEL_PATHS = {"score": ("model",), "train": ("publish", "name")}


def test_search_can_be_restricted_to_models(sessions: Sessions) -> None:
    add_schedule(sessions, "score", job={"kind": "score", "model": "fraud"})
    add_schedule(sessions, "train", job={"kind": "train", "publish": {"name": "fraud"}})
    add_schedule(sessions, "other", job={"kind": "score", "model": "price"})
    add_schedule(sessions, "unknown", job={"kind": "unknown", "model": "fraud"})
    with db.reading(sessions) as session:
        for models, expected in [
            (["fraud"], ["score", "train"]),
            (["price", "x"], ["other"]),
            ([], []),
            (None, ["other", "score", "train", "unknown"]),
        ]:
            page = schedules.search(session, models=models, model_paths=MODEL_PATHS)
            assert [s.name for s in page.items] == expected


def test_a_pause_keeps_the_next_run(sessions: Sessions) -> None:
    schedule = add_schedule(sessions, rule=Recurrence(cron="0 3 * * MON", start_in_s=5))
    assert edit(sessions, {"paused": True}).paused
    resumed = edit(sessions, {"paused": False})
    assert (resumed.paused, resumed.next_at) == (False, schedule.next_at)


def test_runs_due_during_a_pause_are_not_missed_runs(sessions: Sessions) -> None:
    add_schedule(sessions, rule=Recurrence(every_s=3600, start_at=NOW), paused=True)
    resumed = edit(sessions, {"paused": False}, NOW + 10.5 * HOUR)
    assert resumed.next_at == NOW + 11 * HOUR
    assert outcomes(sessions) == []


@pytest.mark.parametrize("catch_up", [False, True])
@pytest.mark.parametrize(
    "changes", [{"paused": False}, {"every_s": 3600.0}, {"timezone": "UTC"}, {"start_at": NOW}, {}]
)
def test_an_edit_to_the_present_value_drops_no_run(
    sessions: Sessions, changes: dict[str, Any], catch_up: bool
) -> None:
    add_schedule(sessions, rule=Recurrence(every_s=3600, start_at=NOW), catch_up=catch_up, overlap=True)
    assert edit(sessions, changes, NOW + 2.5 * HOUR).next_at == NOW
    tick(sessions, NOW + 2 * HOUR)
    started = [NOW, NOW + HOUR, NOW + 2 * HOUR] if catch_up else [NOW + 2 * HOUR]
    assert [due_at for outcome, due_at in outcomes(sessions) if outcome == "started"] == started


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"paused": True}, "3 runs were not started before the schedule was paused"),
        ({"every_s": 60.0}, "3 runs were not started before the schedule was changed"),
        ({"paused": True, "every_s": 60.0}, "3 runs were not started before the schedule was paused"),
    ],
)
def test_runs_that_a_pause_or_a_change_prevents_are_in_the_history(
    sessions: Sessions, changes: dict[str, Any], reason: str
) -> None:
    add_schedule(sessions, rule=Recurrence(every_s=3600, start_at=NOW))
    edit(sessions, changes, NOW + 2 * HOUR)
    assert [(e.outcome, e.due_at, e.reason) for e in history(sessions)] == [("skipped", NOW, reason)]
    edit(sessions, changes, NOW + 9 * HOUR)
    edit(sessions, {"paused": False}, NOW + 9.5 * HOUR)
    assert len(history(sessions)) == 1


def test_setting_cron_or_interval_removes_the_other(sessions: Sessions) -> None:
    add_schedule(sessions, rule=Recurrence(every_s=3600, start_at=NOW))
    row = edit(sessions, {"cron": "30 20 * * *", "timezone": "Europe/Berlin"}, NOW + 0.1 * HOUR)
    assert (row.cron, row.every_s, row.timezone) == ("30 20 * * *", None, "Europe/Berlin")
    assert row.next_at == datetime(2026, 11, 23, 19, 30, tzinfo=UTC)
    row = edit(sessions, {"every_s": 60, "cron": None}, NOW + 1.01 * HOUR)
    assert (row.cron, row.every_s, row.start_at) == (None, 60, NOW)
    assert row.next_at == NOW + timedelta(minutes=61)
    row = edit(sessions, {"start_in_s": 5}, NOW)
    assert row.next_at == row.start_at == NOW + timedelta(seconds=5)


@pytest.mark.parametrize("start", [{}, {"start_in_s": 7 * 86400.0}], ids=["default start", "fixed start"])
def test_a_changed_interval_keeps_only_a_fixed_start(sessions: Sessions, start: dict[str, float]) -> None:
    add_schedule(sessions, rule=Recurrence(every_s=7 * 86400.0, **start))
    week = NOW + timedelta(days=7)
    hourly = edit(sessions, {"every_s": 3600.0})
    assert hourly.next_at == (week if start else NOW + HOUR)
    daily = edit(sessions, {"cron": "30 3 * * *"})
    assert daily.next_at is not None
    assert (daily.next_at < NOW + timedelta(days=1)) is (not start)


def test_edits_record_who_changed_which_fields(sessions: Sessions) -> None:
    add_schedule(sessions, rule=Recurrence(every_s=3600, start_at=NOW + HOUR))
    edit(sessions, {"paused": False, "every_s": 3600.0}, by="nobody")
    edit(sessions, {"every_s": 60.0, "catch_up": True, "paused": None}, by="bob")
    row = edit(sessions, {"job": {"kind": "score", "model": "other"}}, NOW + SECOND, by="cleo")
    assert row.edits == [
        {"at": NOW.isoformat(), "by": "bob", "fields": ["catch_up", "every_s"]},
        {"at": (NOW + SECOND).isoformat(), "by": "cleo", "fields": ["job"]},
    ]
    assert schedules.acting_name(row) == "ann, job edited by cleo"
    row = edit(sessions, {"job": {"kind": "score", "model": "third"}}, by="ann")
    assert schedules.acting_name(row) == "ann"


def test_only_the_newest_edits_are_kept(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "MAX_EDITS", 3)
    add_schedule(sessions)
    for number in range(5):
        row = edit(sessions, {"paused": number % 2 == 0}, by=f"editor {number}")
    assert [e["by"] for e in row.edits] == ["editor 2", "editor 3", "editor 4"]


def test_a_run_names_the_creator_and_the_editor_of_its_job(sessions: Sessions) -> None:
    add_schedule(sessions, rule=HOURLY)
    edit(sessions, {"job": {"kind": "score", "model": "other"}}, by="cleo")
    for number in range(schedules.MAX_EDITS + 1):
        edit(sessions, {"paused": number % 2 == 0}, by="dan")
    edit(sessions, {"paused": False}, by="dan")
    (entry,) = tick(sessions, NOW + HOUR)
    assert (entry.outcome, entry.reason) == ("started", "in the name of ann, job edited by cleo")


def test_an_invalid_edit_changes_nothing(sessions: Sessions) -> None:
    schedule = add_schedule(sessions)
    for changes in (
        {"cron": "x", "paused": True},
        {"cron": "* * * * *", "every_s": 5},
        {"timezone": "Mars/Olympus"},
        {"start_in_s": 5, "start_at": NOW},
    ):
        with pytest.raises(Invalid):
            edit(sessions, changes)
    with db.reading(sessions) as session:
        row = schedules.get(session, "weekly")
    assert (row.paused, row.cron, row.next_at) == (False, schedule.cron, schedule.next_at)


def test_changing_only_the_time_zone_keeps_a_fixed_first_run(sessions: Sessions) -> None:
    schedule = add_schedule(sessions, rule=Recurrence(cron="0 2 * * *", start_in_s=3600))
    assert schedule.next_at == NOW + timedelta(hours=1)
    assert edit(sessions, {"timezone": "Europe/Berlin"}).next_at == schedule.next_at
    assert edit(sessions, {"start_in_s": 60.0}).next_at == NOW + timedelta(minutes=1)


def test_replacing_the_job_keeps_the_next_run(sessions: Sessions) -> None:
    schedule = add_schedule(sessions)
    row = edit(sessions, {"job": {"kind": "score", "model": "price"}, "catch_up": True, "overlap": True})
    assert (row.job["model"], row.catch_up, row.overlap, row.next_at) == (
        "price",
        True,
        True,
        schedule.next_at,
    )


def test_run_now_starts_a_job_and_keeps_the_next_run(sessions: Sessions) -> None:
    schedule = add_schedule(sessions, paused=True)
    job = run_now(sessions)
    assert (job.state, job.schedule, job.model) == ("queued", "weekly", "fraud")
    with db.reading(sessions) as session:
        (entry,) = schedules.runs(session, "weekly").items
        assert schedules.get(session, "weekly").next_at == schedule.next_at
        assert schedules.last_runs(session, ["weekly", "missing"]) == {"weekly": entry}
    assert (entry.outcome, entry.job_id, entry.reason) == ("started", job.id, "requested by bob")


def test_run_now_overlaps_only_if_the_schedule_allows_it(sessions: Sessions) -> None:
    add_schedule(sessions)
    first = run_now(sessions)
    with pytest.raises(Conflict, match=f"job {first.id}"):
        run_now(sessions)
    end_job(sessions, first.id)
    second = run_now(sessions)
    edit(sessions, {"overlap": True})
    assert run_now(sessions).id > second.id


def test_concurrent_run_now_calls_start_one_job(sessions: Sessions) -> None:
    add_schedule(sessions)
    outcomes = threads(*[lambda: run_now(sessions)] * 4)
    assert sorted(type(o).__name__ for o in outcomes) == ["Conflict"] * 3 + ["JobRow"]


def test_the_history_has_pages_and_a_limit(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "MAX_HISTORY_ENTRIES", 5)
    add_schedule(sessions, overlap=True)
    add_schedule(sessions, "other", overlap=True)
    run_now(sessions, "other")
    ids = [run_now(sessions).id for _ in range(7)]
    with db.reading(sessions) as session:
        page = schedules.runs(session, "weekly", page_size=3)
        second_page = schedules.runs(session, "weekly", page_size=3, page_token=page.next_token)
        assert len(schedules.runs(session, "other").items) == 1
    assert [r.job_id for r in [*page.items, *second_page.items]] == ids[:1:-1]
    assert second_page.next_token is None


def test_a_deleted_schedule_leaves_its_jobs(sessions: Sessions) -> None:
    add_schedule(sessions)
    job = run_now(sessions)
    with sessions.begin() as session:
        schedules.remove(session, "weekly")
    with db.reading(sessions) as session:
        assert jobs.get(session, job.id).schedule == "weekly"
        assert session.scalars(select(ScheduleRunRow)).all() == []
    add_schedule(sessions)  # the name can be used again


def test_the_history_outlives_its_jobs(sessions: Sessions) -> None:
    add_schedule(sessions)
    job = run_now(sessions)
    end_job(sessions, job.id)
    with sessions.begin() as session:
        session.get_one(JobRow, job.id).expires_at = datetime.now(UTC) - HOUR
    with sessions.begin() as session:
        assert jobs.delete_expired(session) == [job.id]
    with db.reading(sessions) as session:
        (entry,) = schedules.runs(session, "weekly").items
    assert (entry.outcome, entry.job_id) == ("started", None)


@pytest.mark.parametrize("catch_up", [False, True])
def test_an_unfinished_job_of_a_deleted_schedule_does_not_delay_a_new_one(
    sessions: Sessions, catch_up: bool
) -> None:
    add_schedule(sessions, rule=HOURLY)
    (first,) = tick(sessions, NOW + HOUR)
    with sessions.begin() as session:
        schedules.remove(session, "weekly")
    with sessions.begin() as session:
        now = clock(session)
        rule = Recurrence(every_s=3600, start_at=now)
        new = NewSchedule(name="weekly", job={}, recurrence=rule, catch_up=catch_up)
        schedules.create(session, new, by="ann", moment=now)
    (second,) = tick(sessions, now)
    assert (first.outcome, second.outcome) == ("started", "started")
    assert [e.outcome for e in tick(sessions, now + HOUR)] == ([] if catch_up else ["skipped"])


def test_a_job_is_not_older_than_its_schedule_whatever_the_clocks(sessions: Sessions) -> None:
    """Otherwise the next run would not see it."""
    with sessions.begin() as session:
        ahead = clock(session) + timedelta(days=1)  # the clock of the database
        new = NewSchedule(name="weekly", job={}, recurrence=Recurrence(every_s=3600, start_at=ahead))
        schedules.create(session, new, by="ann", moment=ahead)
    assert [e.outcome for e in tick(sessions, ahead)] == ["started"]
    assert [e.outcome for e in tick(sessions, ahead + HOUR)] == ["skipped"]


def tick(sessions: Sessions, moment: datetime) -> list[ScheduleRunRow]:
    """Tick until nothing is due; return the new entries."""
    entries: list[ScheduleRunRow] = []
    while True:
        with sessions.begin() as session:
            new_entries = schedules.tick(session, start_job, moment=moment)
        if new_entries is None:
            return entries
        entries += new_entries


def history(sessions: Sessions, name: str = "weekly") -> list[ScheduleRunRow]:
    """Return the entries, oldest first."""
    with db.reading(sessions) as session:
        return schedules.runs(session, name, page_size=1000).items[::-1]


def outcomes(sessions: Sessions, name: str = "weekly") -> list[tuple[str, datetime]]:
    return [(e.outcome, e.due_at) for e in history(sessions, name)]


def next_at(sessions: Sessions, name: str = "weekly") -> datetime | None:
    with db.reading(sessions) as session:
        return schedules.get(session, name).next_at


def finish_jobs(sessions: Sessions) -> None:
    """End all open jobs."""
    with db.reading(sessions) as session:
        job_ids = session.scalars(select(JobRow.id).where(JobRow.state.in_(jobs.OPEN_STATES))).all()
    for job_id in job_ids:
        end_job(sessions, job_id)


def test_a_weekly_schedule_starts_after_five_seconds(sessions: Sessions) -> None:
    add_schedule(sessions, rule=Recurrence(every_s=7 * 86400, start_in_s=5))
    assert tick(sessions, NOW + 4.9 * SECOND) == []
    (entry,) = tick(sessions, NOW + 5.2 * SECOND)
    assert (entry.outcome, entry.due_at, entry.at) == ("started", NOW + 5 * SECOND, NOW + 5.2 * SECOND)
    assert tick(sessions, NOW + 6 * SECOND) == []
    assert next_at(sessions) == NOW + 5 * SECOND + timedelta(days=7)
    with db.reading(sessions) as session:
        job = jobs.get(session, entry.job_id or 0)
    assert (job.schedule, job.state, job.created_by) == ("weekly", "queued", "ann")


def test_is_due_reports_a_due_run_without_starting_it(sessions: Sessions) -> None:
    add_schedule(sessions, rule=HOURLY)
    with db.reading(sessions) as session:
        assert not schedules.is_due(session, moment=NOW)
        assert schedules.is_due(session, moment=NOW + HOUR)


def test_a_run_is_skipped_while_the_previous_job_is_open(sessions: Sessions) -> None:
    add_schedule(sessions, rule=HOURLY)
    (first,) = tick(sessions, NOW + HOUR)
    (second,) = tick(sessions, NOW + 2 * HOUR)
    assert (second.outcome, second.job_id) == ("skipped", None)
    assert f"job {first.job_id}" in (second.reason or "")
    finish_jobs(sessions)
    (third,) = tick(sessions, NOW + 3 * HOUR)
    assert third.outcome == "started"


def test_runs_overlap_if_the_schedule_allows_it(sessions: Sessions) -> None:
    add_schedule(sessions, rule=HOURLY, overlap=True)
    entries = [tick(sessions, NOW + n * HOUR)[0] for n in (1, 2, 3)]
    assert len({e.job_id for e in entries if e.outcome == "started"}) == 3


def test_a_job_of_run_now_counts_as_the_previous_job(sessions: Sessions) -> None:
    add_schedule(sessions, rule=HOURLY)
    with sessions.begin() as session:
        schedules.run_now(session, "weekly", start_job, by="bob")
    assert [e.outcome for e in tick(sessions, NOW + HOUR)] == ["skipped"]


def test_a_paused_schedule_is_not_due(sessions: Sessions) -> None:
    add_schedule(sessions, rule=HOURLY, paused=True)
    assert tick(sessions, NOW + 100 * HOUR) == []


@pytest.mark.parametrize("delay_s", [0, 30, 60])
def test_a_run_up_to_a_minute_late_still_starts(sessions: Sessions, delay_s: float) -> None:
    add_schedule(sessions, rule=HOURLY)
    assert [e.outcome for e in tick(sessions, NOW + HOUR + delay_s * SECOND)] == ["started"]


def test_missed_runs_are_skipped_and_counted_in_one_entry(sessions: Sessions) -> None:
    add_schedule(sessions, rule=HOURLY)
    (entry,) = tick(sessions, NOW + 10.5 * HOUR)
    assert (entry.outcome, entry.due_at, entry.job_id) == ("skipped", NOW + HOUR, None)
    assert "10 runs were missed" in (entry.reason or "")
    assert next_at(sessions) == NOW + 11 * HOUR
    assert tick(sessions, NOW + 10.6 * HOUR) == []


def test_the_newest_due_run_starts_if_it_is_in_time(sessions: Sessions) -> None:
    add_schedule(sessions, rule=Recurrence(every_s=5, start_at=NOW))
    entries = tick(sessions, NOW + 22 * SECOND)
    assert [(e.outcome, e.due_at) for e in entries] == [("skipped", NOW), ("started", NOW + 20 * SECOND)]
    assert "4 runs were missed" in (entries[0].reason or "")
    assert next_at(sessions) == NOW + 25 * SECOND


def test_one_missed_run_is_reported_in_the_singular(sessions: Sessions) -> None:
    add_schedule(sessions)
    (entry,) = tick(sessions, NOW + 30 * HOUR)
    assert entry.reason is not None
    assert entry.reason.startswith("1 run was missed")


def test_missed_runs_are_counted_up_to_a_limit(sessions: Sessions) -> None:
    add_schedule(sessions, rule=Recurrence(cron="* * * * * *"))
    entries = tick(sessions, NOW + timedelta(days=365))
    assert [e.outcome for e in entries] == ["skipped", "started"]
    assert f"{schedules.MAX_COUNTED_RUNS} or more" in (entries[0].reason or "")


def test_catch_up_starts_missed_runs_one_after_another(sessions: Sessions) -> None:
    add_schedule(sessions, rule=HOURLY, catch_up=True)
    moment = NOW + 3.5 * HOUR
    for n in (1, 2, 3):
        entries = tick(sessions, moment)
        assert [(e.outcome, e.due_at) for e in entries] == [("started", NOW + n * HOUR)]
        assert tick(sessions, moment) == []  # it waits for the job
        finish_jobs(sessions)
    assert tick(sessions, moment) == []
    assert next_at(sessions) == NOW + 4 * HOUR


def test_overlapping_catch_up_starts_all_missed_runs_oldest_first(sessions: Sessions) -> None:
    add_schedule(sessions, rule=HOURLY, catch_up=True, overlap=True)
    entries = tick(sessions, NOW + 3.5 * HOUR)
    assert [e.due_at for e in entries] == [NOW + n * HOUR for n in (1, 2, 3)]
    ids = [e.job_id or 0 for e in entries]
    assert all(a < b for a, b in pairwise(ids))


@pytest.mark.parametrize("rule", [HOURLY, HOURLY_CRON], ids=["every", "cron"])
def test_catch_up_starts_the_newest_hundred_missed_runs(sessions: Sessions, rule: Recurrence) -> None:
    add_schedule(sessions, rule=rule, catch_up=True, overlap=True)
    entries = tick(sessions, NOW + 250.5 * HOUR)
    assert Counter(e.outcome for e in entries) == {"started": 100, "skipped": 1}
    assert "150 runs were missed" in (entries[0].reason or "")
    started = [e.due_at for e in entries[1:]]
    assert started == [NOW + n * HOUR for n in range(151, 251)]


def test_a_schedule_that_catches_up_does_not_block_others(sessions: Sessions) -> None:
    add_schedule(sessions, "behind", rule=Recurrence(every_s=1, start_at=NOW), catch_up=True)
    add_schedule(sessions, "other", rule=HOURLY)
    tick(sessions, NOW + 0.5 * HOUR)
    assert [e.schedule for e in tick(sessions, NOW + HOUR)] == ["other"]


def test_a_run_that_cannot_start_is_recorded_with_its_reason(sessions: Sessions) -> None:
    def refuse(session: Session, schedule: ScheduleRow) -> JobRow:
        start_job(session, schedule)  # rolled back
        raise NotFound("model", "fraud")

    add_schedule(sessions, rule=HOURLY)
    with sessions.begin() as session:
        entries = schedules.tick(session, refuse, moment=NOW + HOUR)
    assert entries is not None
    (entry,) = history(sessions)
    assert (entry.outcome, entry.reason, entry.job_id) == ("failed", "there is no model 'fraud'", None)
    with db.reading(sessions) as session:
        assert session.scalars(select(JobRow)).all() == []
    assert [e.outcome for e in tick(sessions, NOW + 2 * HOUR)] == ["started"]


def test_a_worker_that_dies_while_it_starts_a_run_leaves_it_due(sessions: Sessions) -> None:
    def die(session: Session, schedule: ScheduleRow) -> JobRow:
        start_job(session, schedule)
        raise KeyboardInterrupt

    add_schedule(sessions, rule=HOURLY)
    with pytest.raises(KeyboardInterrupt), sessions.begin() as session:
        schedules.tick(session, die, moment=NOW + HOUR)
    assert [e.outcome for e in tick(sessions, NOW + HOUR)] == ["started"]
    assert len(history(sessions)) == 1


def test_a_schedule_with_an_unknown_time_zone_does_not_block_others(sessions: Sessions) -> None:
    add_schedule(sessions, "broken", rule=HOURLY)
    add_schedule(sessions, "weekly", rule=Recurrence(cron="0 21 * * *"))
    with sessions.begin() as session:
        values = {"cron": "0 3 * * *", "every_s": None, "timezone": "Mars/Olympus"}
        session.execute(update(ScheduleRow).where(ScheduleRow.name == "broken").values(values))
    assert {e.schedule: e.outcome for e in tick(sessions, NOW + HOUR)} == {
        "broken": "failed",
        "weekly": "started",
    }
    assert "Mars/Olympus" in (history(sessions, "broken")[0].reason or "")
    assert next_at(sessions, "broken") is None


@pytest.mark.parametrize("catch_up", [False, True])
def test_four_workers_start_one_job_per_due_time(url: str, sessions: Sessions, catch_up: bool) -> None:
    names = [f"s{n}" for n in range(5)]
    for name in names:
        add_schedule(
            sessions, name, rule=Recurrence(every_s=5, start_at=NOW), catch_up=catch_up, overlap=True
        )
    due_at = [NOW + n * 5 * SECOND for n in range(6)]
    processes(schedule_helpers.tick_at, [(url, due_at)] * 4)
    with db.reading(sessions) as session:
        runs = session.scalars(select(ScheduleRunRow).order_by(ScheduleRunRow.job_id)).all()
        ids = session.scalars(select(JobRow.id).order_by(JobRow.id)).all()
    assert [r.job_id for r in runs if r.outcome == "started"] == ids
    started = Counter((r.schedule, r.due_at) for r in runs if r.outcome == "started")
    assert set(started.values()) == {1}
    if catch_up:  # without it, a worker that is ahead makes others skip runs
        assert set(started) == {(name, moment) for name in names for moment in due_at}


def test_four_workers_never_start_overlapping_runs(url: str, sessions: Sessions) -> None:
    add_schedule(sessions, rule=Recurrence(every_s=3600, start_at=NOW), catch_up=True)
    processes(schedule_helpers.tick_at, [(url, [NOW + 3 * HOUR])] * 4)
    assert outcomes(sessions) == [("started", NOW)]


@pytest.mark.parametrize("catch_up", [False, True])
def test_a_schedule_continues_after_a_clock_was_years_ahead(sessions: Sessions, catch_up: bool) -> None:
    add_schedule(sessions, rule=HOURLY, catch_up=catch_up)
    assert [e.outcome for e in tick(sessions, NOW + HOUR)] == ["started"]
    finish_jobs(sessions)
    tick(sessions, NOW + timedelta(days=3650))
    finish_jobs(sessions)
    (entry,) = tick(sessions, NOW + 1.5 * HOUR)
    assert "clock was set back" in (entry.reason or "")
    assert next_at(sessions) == NOW + 2 * HOUR
    assert [(e.outcome, e.due_at) for e in tick(sessions, NOW + 2 * HOUR)] == [("started", NOW + 2 * HOUR)]


def test_a_run_started_by_a_fast_clock_is_not_repeated(sessions: Sessions) -> None:
    add_schedule(sessions, rule=HOURLY)
    (fast_clock_job,) = tick(sessions, NOW + HOUR + SECOND)  # by a clock that is fast by half an hour
    finish_jobs(sessions)
    tick(sessions, NOW + 0.5 * HOUR)
    assert next_at(sessions) == NOW + 2 * HOUR
    assert tick(sessions, NOW + HOUR) == []
    (late,) = tick(sessions, NOW + 2 * HOUR)
    assert (fast_clock_job.due_at, late.due_at) == (NOW + HOUR, NOW + 2 * HOUR)


def test_a_clock_set_back_by_seconds_changes_nothing(sessions: Sessions) -> None:
    add_schedule(sessions, rule=HOURLY)
    tick(sessions, NOW + HOUR)
    assert tick(sessions, NOW + HOUR - 30 * SECOND) == []
    assert len(history(sessions)) == 1


def test_tick_uses_the_current_time_by_default(sessions: Sessions) -> None:
    with sessions.begin() as session:
        new = schedules.NewSchedule(
            name="soon", job=schedule_helpers.JOB, recurrence=Recurrence(every_s=60, start_in_s=0)
        )
        schedules.create(session, new, by="ann")
    with db.reading(sessions) as session:
        assert schedules.is_due(session)
    with sessions.begin() as session:
        entries: Any = schedules.tick(session, start_job)
    assert [e.outcome for e in entries] == ["started"]


on_sqlite = pytest.mark.parametrize("dialect", ["sqlite"])
"""For tests of times and limits, which are the same on both databases."""
INSTANT = timedelta(microseconds=1)
MINUTELY = Recurrence(every_s=60, start_at=NOW)


@on_sqlite
def test_a_schedule_is_due_at_the_moment_itself(sessions: Sessions) -> None:
    add_schedule(sessions, rule=HOURLY)
    assert tick(sessions, NOW + HOUR - INSTANT) == []
    with db.reading(sessions) as session:
        assert not schedules.is_due(session, moment=NOW + HOUR - INSTANT)
        assert schedules.is_due(session, moment=NOW + HOUR)
    (entry,) = tick(sessions, NOW + HOUR)
    assert (entry.outcome, entry.due_at) == ("started", NOW + HOUR)


@on_sqlite
@pytest.mark.parametrize("late_by", [INSTANT, SECOND])
def test_a_run_more_than_a_minute_late_is_missed(sessions: Sessions, late_by: timedelta) -> None:
    add_schedule(sessions, rule=HOURLY)
    (entry,) = tick(sessions, NOW + HOUR + schedules.MAX_LATE + late_by)
    assert (entry.outcome, entry.due_at) == ("skipped", NOW + HOUR)
    assert next_at(sessions) == NOW + 2 * HOUR


@on_sqlite
def test_a_newer_run_within_a_minute_starts_and_the_late_one_is_missed(sessions: Sessions) -> None:
    add_schedule(sessions, rule=MINUTELY)
    entries = tick(sessions, NOW + 2 * schedules.MAX_LATE)
    assert [(e.outcome, e.due_at) for e in entries] == [
        ("skipped", NOW),
        ("started", NOW + timedelta(minutes=2)),
    ]
    assert (entries[0].reason or "").startswith("2 runs were missed")


@on_sqlite
@pytest.mark.parametrize(
    ("missed", "text"),
    [
        (1, "1 run was"),
        (2, "2 runs were"),
        (4, "4 runs were"),
        (5, "5 or more runs were"),
        (9, "5 or more runs were"),
    ],
)
def test_missed_runs_are_counted_exactly_below_the_limit(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, missed: int, text: str
) -> None:
    monkeypatch.setattr(schedules, "MAX_COUNTED_RUNS", 5)
    add_schedule(sessions, rule=Recurrence(every_s=3600, start_at=NOW))
    (entry,) = tick(sessions, NOW + (missed - 1) * HOUR + 2 * schedules.MAX_LATE)
    assert (entry.outcome, entry.reason) == (
        "skipped",
        f"{text} missed: no worker was running when they were due",
    )


@on_sqlite
@pytest.mark.parametrize("rule", [HOURLY, HOURLY_CRON], ids=["every", "cron"])
@pytest.mark.parametrize(("due", "missed"), [(1, 0), (2, 0), (3, 0), (4, 1), (5, 2)])
def test_catching_up_starts_as_many_runs_as_the_limit(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, rule: Recurrence, due: int, missed: int
) -> None:
    monkeypatch.setattr(schedules, "MAX_CATCH_UP_RUNS", 3)
    add_schedule(sessions, rule=rule, catch_up=True, overlap=True)
    entries = tick(sessions, NOW + due * HOUR)
    skipped = [e.reason for e in entries if e.outcome == "skipped"]
    assert len(skipped) == (1 if missed else 0)
    assert all((reason or "").startswith(f"{missed} run") for reason in skipped)
    started = [e.due_at for e in entries if e.outcome == "started"]
    assert started == [NOW + n * HOUR for n in range(missed + 1, due + 1)]
    assert next_at(sessions) == NOW + (due + 1) * HOUR


@on_sqlite
def test_an_entry_more_than_a_minute_in_the_future_shows_a_clock_that_was_set_back(
    sessions: Sessions,
) -> None:
    add_schedule(sessions, rule=HOURLY)
    (started,) = tick(sessions, NOW + HOUR)
    finish_jobs(sessions)
    at_the_limit = started.at - schedules.MAX_LATE
    assert tick(sessions, at_the_limit) == []
    (entry,) = tick(sessions, at_the_limit - INSTANT)
    assert "clock was set back" in (entry.reason or "")
    assert next_at(sessions) == NOW + 2 * HOUR, "the run that was started is not repeated"


@on_sqlite
@pytest.mark.parametrize(("early", "following"), [(INSTANT, 1), (timedelta(0), 2)])
def test_a_run_that_is_due_as_a_pause_ends_is_not_started(
    sessions: Sessions, early: timedelta, following: int
) -> None:
    add_schedule(sessions, rule=HOURLY, paused=True)
    assert edit(sessions, {"paused": False}, NOW + HOUR - early).next_at == NOW + following * HOUR


@on_sqlite
def test_the_schedule_that_is_due_longest_is_processed_first(sessions: Sessions) -> None:
    for name, minutes in (("b", 2), ("c", 3), ("a", 1)):
        add_schedule(sessions, name, rule=Recurrence(every_s=3600, start_at=NOW + timedelta(minutes=minutes)))
    assert [e.schedule for e in tick(sessions, NOW + timedelta(minutes=3))] == ["a", "b", "c"]


@on_sqlite
def test_an_exactly_full_page_of_schedules_is_the_last(sessions: Sessions) -> None:
    for name in ("b", "a"):
        add_schedule(sessions, name, overlap=True)
    first, second = run_now(sessions, "a"), run_now(sessions, "a")
    with db.reading(sessions) as session:
        page = schedules.search(session, model_paths={}, page_size=2)
        assert ([s.name for s in page.items], page.next_token) == (["a", "b"], None)
        entries = schedules.runs(session, "a", page_size=2)
        assert ([e.job_id for e in entries.items], entries.next_token) == ([second.id, first.id], None)
        assert schedules.search(session, model_paths={}, page_size=1).next_token is not None
        assert schedules.runs(session, "a", page_size=1).next_token is not None


@on_sqlite
@pytest.mark.parametrize("entries", [4, 5, 6])
def test_the_newest_entries_of_the_history_are_kept(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, entries: int
) -> None:
    monkeypatch.setattr(schedules, "MAX_HISTORY_ENTRIES", 5)
    add_schedule(sessions, overlap=True)
    ids = [run_now(sessions).id for _ in range(entries)]
    assert [e.job_id for e in history(sessions)] == ids[-5:]


@on_postgresql
def test_a_schedule_that_another_worker_processes_is_skipped(sessions: Sessions) -> None:
    for name in ("first", "second"):
        add_schedule(sessions, name, rule=HOURLY)
    with sessions.begin() as session, sessions.begin() as other, sessions.begin() as third:
        entries = [
            schedules.tick(s, start_job, moment=NOW + HOUR)
            for s in (session, *map(never_wait, (other, third)))
        ]
    assert entries[2] is None
    assert {entry.schedule for found in entries[:2] for entry in found or ()} == {"first", "second"}


@on_postgresql
def test_a_pause_behind_a_run_sees_that_the_run_has_started(sessions: Sessions) -> None:
    """The route reads the schedule before the edit locks it, to check the access of the caller."""
    add_schedule(sessions, rule=HOURLY)

    def pause(session: Session) -> datetime | None:
        read_before = schedules.get(session, "weekly")
        assert read_before.next_at == NOW + HOUR
        changes, moment = {"paused": True}, NOW + HOUR + SECOND
        return schedules.edit(session, "weekly", changes, by="bob", moment=moment).next_at

    outcome = run_behind(
        sessions, lambda session: schedules.tick(session, start_job, moment=NOW + HOUR), pause
    )
    assert outcome == NOW + 2 * HOUR
    with db.reading(sessions) as session:
        assert [run.outcome for run in schedules.runs(session, "weekly").items] == ["started"]


@on_postgresql
def test_a_schedule_that_is_being_edited_does_not_start(sessions: Sessions) -> None:
    add_schedule(sessions, rule=HOURLY)
    with sessions.begin() as session:
        schedules.edit(session, "weekly", {"paused": True}, by="bob", moment=NOW)
        with sessions.begin() as other:
            assert schedules.tick(never_wait(other), start_job, moment=NOW + HOUR) is None
    assert tick(sessions, NOW + HOUR) == []


@on_postgresql
def test_a_run_now_behind_another_one_is_refused(sessions: Sessions) -> None:
    add_schedule(sessions)

    def run(session: Session) -> int:
        return schedules.run_now(session, "weekly", start_job, by="bob").id

    assert isinstance(run_behind(sessions, run, run), Conflict)


@on_postgresql
def test_a_name_that_another_transaction_creates_first_is_refused(sessions: Sessions) -> None:
    new = NewSchedule(name="weekly", job={"kind": "score", "model": "fraud"}, recurrence=HOURLY)

    def create(session: Session) -> None:
        schedules.create(session, new, by="ann", moment=NOW)

    assert isinstance(run_behind(sessions, create, create), Conflict)


@on_postgresql
def test_a_schedule_deleted_at_the_same_time_is_not_found(sessions: Sessions) -> None:
    add_schedule(sessions)

    def remove(session: Session) -> None:
        read_before = schedules.get(session, "weekly")
        schedules.remove(session, "weekly")
        assert read_before.name == "weekly"

    assert isinstance(run_behind(sessions, remove, remove), NotFound)


def test_a_catch_up_waits_for_a_job_that_started_after_the_schedule_was_found_due(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_schedule(sessions, rule=HOURLY, catch_up=True)
    job_id = run_now(sessions).id
    monkeypatch.setattr(schedules, "_is_due", lambda moment: ScheduleRow.next_at <= moment)
    with sessions.begin() as session:
        assert schedules.tick(session, start_job, moment=NOW + HOUR) == []
        assert schedules.get(session, "weekly").next_at == NOW + HOUR
    end_job(sessions, job_id)
    with sessions.begin() as session:
        entries = schedules.tick(session, start_job, moment=NOW + HOUR)
    assert [entry.outcome for entry in entries or ()] == ["started"]


@on_sqlite
@pytest.mark.parametrize(("early", "kept"), [(INSTANT, True), (timedelta(0), False)])
def test_a_fixed_first_run_is_kept_until_it_is_due(sessions: Sessions, early: timedelta, kept: bool) -> None:
    add_schedule(sessions, rule=Recurrence(cron="30 * * * *", start_in_s=3600))
    row = edit(sessions, {"timezone": "Europe/Berlin"}, NOW + HOUR - early)
    assert row.next_at == NOW + (1 if kept else 1.5) * HOUR
