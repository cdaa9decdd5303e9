"""When runs are: cron in a time zone, intervals from a start. All times are given, none is waited for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise

import pytest

from registry.errors import Invalid
from registry.jobs import recurrence
from registry.jobs.recurrence import When

WEEK = 7 * 24 * 3600.0


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def upcoming(when: When, moment: str, count: int) -> list[datetime]:
    found = recurrence.first(when, at(moment))
    if when.start_in_s is None:
        return list(islice(recurrence.after(when_from(when, found.start_at), at(moment)), count))
    return [found.run_at, *islice(recurrence.after(when_from(when, found.start_at), found.run_at), count - 1)]


def when_from(when: When, start_at: datetime) -> When:
    return When(cron=when.cron, every_s=when.every_s, timezone=when.timezone, start_at=start_at)


def local(when: When, moment: str, count: int) -> list[str]:
    zone = recurrence._zone(when.timezone)
    return [m.astimezone(zone).strftime("%a %d %H:%M%z") for m in upcoming(when, moment, count)]


def test_weekly_with_the_first_run_five_seconds_from_now() -> None:
    runs = upcoming(When(every_s=WEEK, start_in_s=5), "2026-11-22T20:00:00Z", 3)
    assert runs == [at("2026-11-22T20:00:05Z"), at("2026-11-29T20:00:05Z"), at("2026-12-06T20:00:05Z")]


def test_an_interval_without_a_start_begins_with_one_interval() -> None:
    assert upcoming(When(every_s=1800), "2026-11-22T20:00:00Z", 2) == [
        at("2026-11-22T20:30:00Z"),
        at("2026-11-22T21:00:00Z"),
    ]


def test_an_interval_counts_from_its_start_and_does_not_drift() -> None:
    when = When(every_s=0.1 + 0.9 + 1 / 3, start_at=at("2026-01-01T00:00:00Z"))
    far = at("2026-01-01T00:00:00Z") + 3_000_000 * timedelta(seconds=when.every_s or 0)
    assert recurrence.following(when, far - recurrence.INSTANT) == far
    assert recurrence.following(when, far) == far + timedelta(seconds=when.every_s or 0)


def test_what_lies_before_the_schedule_was_made_is_never_due() -> None:
    since = at("2020-01-06T03:00:00Z")  # a Monday
    found = recurrence.first(When(every_s=WEEK, start_at=since), at("2026-11-22T20:00:00Z"))
    assert found == (since, at("2026-11-23T03:00:00Z"))
    found = recurrence.first(When(cron="0 3 * * MON", start_at=since), at("2026-11-22T20:00:00Z"))
    assert found == (since, at("2026-11-23T03:00:00Z"))


def test_a_start_in_the_future_is_a_run_of_its_interval_and_a_bound_of_its_cron() -> None:
    start = at("2027-01-01T00:00:00Z")
    assert recurrence.first(When(every_s=WEEK, start_at=start), at("2026-11-22T20:00:00Z")).run_at == start
    cron = When(cron="0 3 * * *", start_at=start)
    assert recurrence.first(cron, at("2026-11-22T20:00:00Z")).run_at == at("2027-01-01T03:00:00Z")
    exactly = When(cron="0 0 * * *", start_at=start)
    assert recurrence.first(exactly, at("2026-11-22T20:00:00Z")).run_at == start


def test_a_start_in_seconds_is_the_first_run_of_a_cron_expression_too() -> None:
    assert upcoming(When(cron="0 3 * * MON", start_in_s=5), "2026-11-22T20:00:00Z", 3) == [
        at("2026-11-22T20:00:05Z"),
        at("2026-11-23T03:00:00Z"),
        at("2026-11-30T03:00:00Z"),
    ]


def test_cron_is_read_in_its_time_zone() -> None:
    for zone, expected in [("UTC", "03:00"), ("Europe/Berlin", "02:00"), ("America/New_York", "08:00")]:
        found = upcoming(When(cron="0 3 * * *", timezone=zone), "2026-11-22T20:00:00Z", 1)
        assert found == [at(f"2026-11-23T{expected}:00Z")], zone


def test_seconds_names_and_last_days_are_understood() -> None:
    now = "2026-11-22T20:00:00.5Z"
    assert upcoming(When(cron="*/20 * * * * *"), now, 2) == [
        at("2026-11-22T20:00:20Z"),
        at("2026-11-22T20:00:40Z"),
    ]
    assert local(When(cron="0 0 L FEB *"), now, 1) == ["Sun 28 00:00+0000"]
    assert local(When(cron="30 6 * * fri#1"), now, 1) == ["Fri 04 06:30+0000"]


def test_a_time_that_the_clock_change_skips_comes_right_after_the_gap() -> None:
    daily = When(cron="30 2 * * *", timezone="Europe/Berlin")  # 28 March 2027: 02:00 is 03:00
    assert local(daily, "2027-03-27T00:00:00Z", 3) == [
        "Sat 27 02:30+0100",
        "Sun 28 03:00+0200",
        "Mon 29 02:30+0200",
    ]


def test_a_time_that_comes_twice_is_one_run() -> None:
    daily = When(cron="30 2 * * *", timezone="Europe/Berlin")  # 31 October 2027: 03:00 is 02:00
    expected = ["Sat 30 02:30+0200", "Sun 31 02:30+0200", "Mon 01 02:30+0100"]
    assert local(daily, "2027-10-30T00:00:00Z", 3) == expected
    # made between the two: today's was before it was made
    assert local(daily, "2027-10-31T00:40:00Z", 1) == ["Mon 01 02:30+0100"]
    assert local(daily, "2027-10-31T01:10:00Z", 1) == ["Mon 01 02:30+0100"]


@pytest.mark.parametrize("day", ["2027-03-28", "2027-10-31"])
def test_runs_by_the_hour_go_on_through_a_clock_change(day: str) -> None:
    hourly = When(cron="15 * * * *", timezone="Europe/Berlin")
    found = upcoming(hourly, f"{day}T00:00:00Z", 6)
    assert {b - a for a, b in pairwise(found)} == {timedelta(hours=1)}


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Sao_Paulo", "Asia/Beirut", "Australia/Lord_Howe"])
@pytest.mark.parametrize("cron", ["*/30 * * * *", "0 0 * * *", "30 2,3 * * *", "0 */2 * * *", "0 0 * * * *"])
def test_moments_only_go_forward_and_are_the_same_one_by_one(zone: str, cron: str) -> None:
    """A worker asks for the next one after the last; nobody holds on to an iterator for a year."""
    when = When(cron=cron, timezone=zone, start_at=at("2016-01-01T00:00:00Z"))
    for begin in ("2016-10-14T00:00:00Z", "2027-03-27T12:00:00Z", "2027-10-30T12:00:00Z"):
        moment, one_by_one = at(begin), []
        for _ in range(60):
            found = recurrence.following(when, moment)
            assert found is not None
            assert found > moment
            moment = found
            one_by_one.append(found)
        assert one_by_one == list(islice(recurrence.after(when, at(begin)), 60))


def test_the_newest_runs_are_found_without_counting_from_the_start() -> None:
    end = at("2026-11-22T20:00:00Z")
    every = When(every_s=1, start_at=at("2016-01-01T00:00:00Z"))
    assert recurrence.newest(every, end, 100) == end - timedelta(seconds=99)
    cron = When(cron="*/5 * * * *", start_at=at("2016-01-01T00:00:00Z"))
    for moment in (end, end + timedelta(seconds=0.5), end + timedelta(minutes=4.9)):
        assert recurrence.newest(cron, moment, 100) == end - timedelta(minutes=495)


@pytest.mark.parametrize(
    ("when", "field"),
    [
        (When(), "cron"),
        (When(cron="0 3 * * *", every_s=5), "cron"),
        (When(cron="every day"), "cron"),
        (When(cron="0 3 * *"), "cron"),
        (When(cron="61 3 * * *"), "cron"),
        (When(cron=""), "cron"),
        (When(cron="0 0 30 2 *"), "cron"),
        (When(cron="0 0 */31 2 MON#5"), "cron"),  # the first day is never in the fifth week
        (When(every_s=0.5), "every_s"),
        (When(every_s=-1), "every_s"),
        (When(every_s=float("nan")), "every_s"),
        (When(every_s=1e12), "every_s"),
        (When(every_s=5, start_in_s=-1), "start_in_s"),
        (When(every_s=5, start_in_s=float("inf")), "start_in_s"),
        (When(every_s=5, start_in_s=1, start_at=datetime(2027, 1, 1, tzinfo=UTC)), "start_at"),
        (When(every_s=5, start_at=datetime(2027, 1, 1)), "start_at"),
        (When(every_s=5, start_at=datetime(9999, 1, 1, tzinfo=UTC)), "start_at"),
        (When(every_s=5, start_at=datetime(1, 1, 1, tzinfo=UTC)), "start_at"),
        (When(cron="0 3 * * *", timezone="Mars/Olympus"), "timezone"),
        (When(cron="0 3 * * *", timezone="Europe"), "timezone"),
        (When(cron="0 3 * * *", timezone="../../etc/passwd"), "timezone"),
        (When(cron="0 3 * * *", timezone=""), "timezone"),
        (When(every_s=5, timezone="nowhere"), "timezone"),
    ],
    ids=str,
)
def test_what_is_no_time_is_refused_by_field(when: When, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        recurrence.first(when, at("2026-11-22T20:00:00Z"))
    assert [e.field for e in refused.value.errors] == [field]
