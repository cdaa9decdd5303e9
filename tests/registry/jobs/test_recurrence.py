"""Times of runs: cron expressions in a time zone, and intervals from a start. No test waits for a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any

import pytest

from registry.errors import Invalid
from registry.jobs import recurrence
from registry.jobs.recurrence import Recurrence

WEEK = 7 * 24 * 3600.0


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def upcoming(rule: Recurrence, moment: str, count: int) -> list[datetime]:
    """Return the next `count` runs of a schedule that is created at `moment`."""
    first = recurrence.first_run(rule, at(moment))
    stored = Recurrence(cron=rule.cron, every_s=rule.every_s, timezone=rule.timezone, start_at=first.start_at)
    if rule.start_in_s is None:
        return list(islice(recurrence.runs_after(stored, at(moment)), count))
    return [first.run_at, *islice(recurrence.runs_after(stored, first.run_at), count - 1)]


def upcoming_local(rule: Recurrence, moment: str, count: int) -> list[str]:
    """Return `upcoming` in the time zone of the schedule."""
    zone = recurrence._zone(rule.timezone)
    return [m.astimezone(zone).strftime("%a %d %H:%M%z") for m in upcoming(rule, moment, count)]


def test_start_in_seconds_sets_the_first_run_of_an_interval() -> None:
    runs = upcoming(Recurrence(every_s=WEEK, start_in_s=5), "2026-11-22T20:00:00Z", 3)
    assert runs == [at("2026-11-22T20:00:05Z"), at("2026-11-29T20:00:05Z"), at("2026-12-06T20:00:05Z")]


def test_an_interval_without_a_start_runs_first_after_one_interval() -> None:
    assert upcoming(Recurrence(every_s=1800), "2026-11-22T20:00:00Z", 2) == [
        at("2026-11-22T20:30:00Z"),
        at("2026-11-22T21:00:00Z"),
    ]


def test_an_interval_is_counted_from_its_start_without_drift() -> None:
    rule = Recurrence(every_s=0.1 + 0.9 + 1 / 3, start_at=at("2026-01-01T00:00:00Z"))
    run_at = at("2026-01-01T00:00:00Z") + 3_000_000 * timedelta(seconds=rule.every_s or 0)
    assert recurrence.next_run(rule, run_at - recurrence.INSTANT) == run_at
    assert recurrence.next_run(rule, run_at) == run_at + timedelta(seconds=rule.every_s or 0)


def test_the_first_run_is_never_in_the_past() -> None:
    since = at("2020-01-06T03:00:00Z")  # a Monday
    first = recurrence.first_run(Recurrence(every_s=WEEK, start_at=since), at("2026-11-22T20:00:00Z"))
    assert first == (since, at("2026-11-23T03:00:00Z"))
    first = recurrence.first_run(Recurrence(cron="0 3 * * MON", start_at=since), at("2026-11-22T20:00:00Z"))
    assert first == (since, at("2026-11-23T03:00:00Z"))


def test_a_future_start_is_the_first_run_of_an_interval_and_a_lower_bound_for_cron() -> None:
    start = at("2027-01-01T00:00:00Z")
    assert (
        recurrence.first_run(Recurrence(every_s=WEEK, start_at=start), at("2026-11-22T20:00:00Z")).run_at
        == start
    )
    cron = Recurrence(cron="0 3 * * *", start_at=start)
    assert recurrence.first_run(cron, at("2026-11-22T20:00:00Z")).run_at == at("2027-01-01T03:00:00Z")
    exactly = Recurrence(cron="0 0 * * *", start_at=start)
    assert recurrence.first_run(exactly, at("2026-11-22T20:00:00Z")).run_at == start


def test_start_in_seconds_sets_the_first_run_of_a_cron_expression() -> None:
    assert upcoming(Recurrence(cron="0 3 * * MON", start_in_s=5), "2026-11-22T20:00:00Z", 3) == [
        at("2026-11-22T20:00:05Z"),
        at("2026-11-23T03:00:00Z"),
        at("2026-11-30T03:00:00Z"),
    ]


def test_cron_is_evaluated_in_its_time_zone() -> None:
    for zone, expected in [("UTC", "03:00"), ("Europe/Berlin", "02:00"), ("America/New_York", "08:00")]:
        runs = upcoming(Recurrence(cron="0 3 * * *", timezone=zone), "2026-11-22T20:00:00Z", 1)
        assert runs == [at(f"2026-11-23T{expected}:00Z")], zone


def test_cron_supports_seconds_names_and_last_days() -> None:
    now = "2026-11-22T20:00:00.5Z"
    assert upcoming(Recurrence(cron="*/20 * * * * *"), now, 2) == [
        at("2026-11-22T20:00:20Z"),
        at("2026-11-22T20:00:40Z"),
    ]
    assert upcoming_local(Recurrence(cron="0 0 L FEB *"), now, 1) == ["Sun 28 00:00+0000"]
    assert upcoming_local(Recurrence(cron="30 6 * * fri#1"), now, 1) == ["Fri 04 06:30+0000"]


def test_a_time_skipped_by_a_clock_change_runs_right_after_the_gap() -> None:
    daily = Recurrence(cron="30 2 * * *", timezone="Europe/Berlin")  # 28 March 2027: 02:00 is 03:00
    assert upcoming_local(daily, "2027-03-27T00:00:00Z", 3) == [
        "Sat 27 02:30+0100",
        "Sun 28 03:00+0200",
        "Mon 29 02:30+0200",
    ]


def test_a_time_repeated_by_a_clock_change_runs_once() -> None:
    daily = Recurrence(cron="30 2 * * *", timezone="Europe/Berlin")  # 31 October 2027: 03:00 is 02:00
    expected = ["Sat 30 02:30+0200", "Sun 31 02:30+0200", "Mon 01 02:30+0100"]
    assert upcoming_local(daily, "2027-10-30T00:00:00Z", 3) == expected
    # created between the two occurrences: the run of that day is in the past
    assert upcoming_local(daily, "2027-10-31T00:40:00Z", 1) == ["Mon 01 02:30+0100"]
    assert upcoming_local(daily, "2027-10-31T01:10:00Z", 1) == ["Mon 01 02:30+0100"]


@pytest.mark.parametrize("day", ["2027-03-28", "2027-10-31"])
def test_hourly_runs_continue_through_a_clock_change(day: str) -> None:
    hourly = Recurrence(cron="15 * * * *", timezone="Europe/Berlin")
    runs = upcoming(hourly, f"{day}T00:00:00Z", 6)
    assert {b - a for a, b in pairwise(runs)} == {timedelta(hours=1)}


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Sao_Paulo", "Asia/Beirut", "Australia/Lord_Howe"])
@pytest.mark.parametrize("cron", ["*/30 * * * *", "0 0 * * *", "30 2,3 * * *", "0 */2 * * *", "0 0 * * * *"])
def test_runs_increase_and_next_run_agrees_with_runs_after(zone: str, cron: str) -> None:
    """Workers call `next_run` with the last run instead of keeping an iterator."""
    rule = Recurrence(cron=cron, timezone=zone, start_at=at("2016-01-01T00:00:00Z"))
    for created_at in ("2016-10-14T00:00:00Z", "2027-03-27T12:00:00Z", "2027-10-30T12:00:00Z"):
        moment, one_by_one = at(created_at), []
        for _ in range(60):
            run_at = recurrence.next_run(rule, moment)
            assert run_at is not None
            assert run_at > moment
            moment = run_at
            one_by_one.append(run_at)
        assert one_by_one == list(islice(recurrence.runs_after(rule, at(created_at)), 60))


def test_nth_last_run_does_not_iterate_from_the_start() -> None:
    end = at("2026-11-22T20:00:00Z")
    every = Recurrence(every_s=1, start_at=at("2016-01-01T00:00:00Z"))
    assert recurrence.nth_last_run(every, end, 100) == end - timedelta(seconds=99)
    cron = Recurrence(cron="*/5 * * * *", start_at=at("2016-01-01T00:00:00Z"))
    for moment in (end, end + timedelta(seconds=0.5), end + timedelta(minutes=4.9)):
        assert recurrence.nth_last_run(cron, moment, 100) == end - timedelta(minutes=495)


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (Recurrence(), "cron"),
        (Recurrence(cron="0 3 * * *", every_s=5), "cron"),
        (Recurrence(cron="every day"), "cron"),
        (Recurrence(cron="0 3 * *"), "cron"),
        (Recurrence(cron="61 3 * * *"), "cron"),
        (Recurrence(cron=""), "cron"),
        (Recurrence(cron="0 0 30 2 *"), "cron"),
        (Recurrence(cron="0 0 */31 2 MON#5"), "cron"),  # the first day is never in the fifth week
        (Recurrence(every_s=0.5), "every_s"),
        (Recurrence(every_s=-1), "every_s"),
        (Recurrence(every_s=float("nan")), "every_s"),
        (Recurrence(every_s=1e12), "every_s"),
        (Recurrence(every_s=5, start_in_s=-1), "start_in_s"),
        (Recurrence(every_s=5, start_in_s=float("inf")), "start_in_s"),
        (Recurrence(every_s=5, start_in_s=1, start_at=datetime(2027, 1, 1, tzinfo=UTC)), "start_at"),
        (Recurrence(every_s=5, start_at=datetime(2027, 1, 1)), "start_at"),
        (Recurrence(every_s=5, start_at=datetime(9999, 1, 1, tzinfo=UTC)), "start_at"),
        (Recurrence(every_s=5, start_at=datetime(1, 1, 1, tzinfo=UTC)), "start_at"),
        (Recurrence(cron="0 3 * * *", timezone="Mars/Olympus"), "timezone"),
        (Recurrence(cron="0 3 * * *", timezone="Europe"), "timezone"),
        (Recurrence(cron="0 3 * * *", timezone="../../etc/passwd"), "timezone"),
        (Recurrence(cron="0 3 * * *", timezone=""), "timezone"),
        (Recurrence(every_s=5, timezone="nowhere"), "timezone"),
    ],
    ids=str,
)
def test_an_invalid_recurrence_is_rejected_with_its_field(rule: Recurrence, field: str) -> None:
    with pytest.raises(Invalid) as raised:
        recurrence.first_run(rule, at("2026-11-22T20:00:00Z"))
    assert [e.field for e in raised.value.errors] == [field]


NOW = "2026-11-22T20:00:00Z"
INSTANT = timedelta(microseconds=1)
LONGEST_S = 3650 * 86400.0


@pytest.mark.parametrize(
    ("rule", "beyond"),
    [
        (Recurrence(every_s=1.0), Recurrence(every_s=0.999999)),
        (Recurrence(every_s=LONGEST_S), Recurrence(every_s=LONGEST_S + 0.001)),
        (Recurrence(every_s=60, start_in_s=0.0), Recurrence(every_s=60, start_in_s=-0.000001)),
        (Recurrence(every_s=60, start_in_s=LONGEST_S), Recurrence(every_s=60, start_in_s=LONGEST_S + 0.001)),
        *(
            (
                Recurrence(every_s=60, start_at=at(NOW) + sign * recurrence.MAX_START),
                Recurrence(every_s=60, start_at=at(NOW) + sign * (recurrence.MAX_START + INSTANT)),
            )
            for sign in (1, -1)
        ),
    ],
    ids=str,
)
def test_a_recurrence_is_accepted_up_to_its_bounds(rule: Recurrence, beyond: Recurrence) -> None:
    assert recurrence.first_run(rule, at(NOW)).run_at >= at(NOW)
    with pytest.raises(Invalid):
        recurrence.first_run(beyond, at(NOW))


@pytest.mark.parametrize("rule", [{"every_s": 60.0}, {"cron": "* * * * *"}], ids=str)
def test_a_run_at_the_moment_itself_is_the_first_run_but_not_the_next(rule: dict[str, Any]) -> None:
    moment, minute = at(NOW), timedelta(minutes=1)
    since_moment = Recurrence(**rule, start_at=moment)
    assert recurrence.first_run(since_moment, moment).run_at == moment
    assert recurrence.next_run(since_moment, moment) == moment + minute
    assert recurrence.next_run(since_moment, moment - INSTANT) == moment
    assert recurrence.next_run(since_moment, moment + minute - INSTANT) == moment + minute
    assert recurrence.next_run(since_moment, moment - timedelta(days=1)) == moment, "not before its start"
    later = Recurrence(**rule, start_at=moment + INSTANT)
    first = recurrence.first_run(later, moment).run_at
    assert first == moment + (INSTANT if "every_s" in rule else minute)


@pytest.mark.parametrize("rule", [{"every_s": 60.0}, {"cron": "* * * * *"}], ids=str)
def test_runs_between_two_times_include_the_end_only(rule: dict[str, Any]) -> None:
    start, minute = at(NOW), timedelta(minutes=1)
    every_minute = Recurrence(**rule, start_at=start - timedelta(days=1))

    def between(end: datetime, limit: int = 100) -> list[int]:
        runs = recurrence.runs_between(every_minute, start, end, limit)
        return [(run - start) // minute for run in runs]

    assert between(start) == []
    assert between(start + minute - INSTANT) == []
    assert between(start + minute) == [1]
    assert between(start + 3 * minute) == [1, 2, 3]
    assert between(start + 3 * minute, limit=3) == [1, 2, 3]
    assert between(start + 3 * minute, limit=2) == [1, 2]
    assert between(start + 3 * minute, limit=0) == []


@pytest.mark.parametrize("rule", [{"every_s": 60.0}, {"cron": "* * * * *"}], ids=str)
def test_the_last_runs_include_one_at_the_end(rule: dict[str, Any]) -> None:
    end, minute = at(NOW), timedelta(minutes=1)
    every_minute = Recurrence(**rule, start_at=end - timedelta(days=1))
    for count in (1, 2, 100):
        assert recurrence.nth_last_run(every_minute, end, count) == end - (count - 1) * minute
        just_before = end - INSTANT
        assert recurrence.nth_last_run(every_minute, just_before, count) == end - count * minute


def test_no_run_is_before_the_start_or_on_a_date_that_does_not_exist() -> None:
    end = at("2026-03-01T00:00:00Z")
    leap_days = Recurrence(cron="0 0 29 2 *", start_at=end - timedelta(days=36500))
    assert recurrence.nth_last_run(leap_days, end, 1) == at("2024-02-29T00:00:00Z")
    never = Recurrence(cron="0 0 */31 2 MON#5", start_at=end)
    assert recurrence.nth_last_run(never, end, 1) is None
    assert recurrence.next_run(never, end) is None
    recent = Recurrence(every_s=60, start_at=end - timedelta(minutes=2))
    assert recurrence.nth_last_run(recent, end, 100) == recent.start_at


@pytest.mark.parametrize(
    ("cron", "day", "runs"),
    [
        # Berlin, 28 March: 02:00 is 03:00, at 01:00 UTC
        ("59 1 * * *", "2027-03-28", ["00:59Z"]),
        ("0 2 * * *", "2027-03-28", ["01:00Z"]),
        ("59 2 * * *", "2027-03-28", ["01:00Z"]),
        ("0 3 * * *", "2027-03-28", ["01:00Z"]),
        ("0 2,3 * * *", "2027-03-28", ["01:00Z"]),
        ("30 1-3 * * *", "2027-03-28", ["00:30Z", "01:00Z", "01:30Z"]),
        # Berlin, 31 October: 03:00 is 02:00, at 01:00 UTC
        ("59 1 * * *", "2027-10-31", ["23:59Z"]),
        ("0 2 * * *", "2027-10-31", ["00:00Z"]),
        ("59 2 * * *", "2027-10-31", ["00:59Z"]),
        ("0 3 * * *", "2027-10-31", ["02:00Z"]),
        ("30 * * * *", "2027-10-31", ["00:30Z", "01:30Z", "02:30Z"]),
    ],
)
def test_each_time_of_a_day_with_a_clock_change_runs_once(cron: str, day: str, runs: list[str]) -> None:
    rule = Recurrence(cron=cron, timezone="Europe/Berlin", start_at=at("2027-01-01T00:00:00Z"))
    start = at(f"{day}T00:00:00Z") - timedelta(minutes=1, seconds=1)
    end = at(f"{day}T02:59:00Z")
    between = recurrence.runs_between(rule, start, end, 100)
    assert [run.strftime("%H:%MZ") for run in between] == runs
    for count in range(1, len(between) + 1):
        assert recurrence.nth_last_run(rule, end, count) == between[-count]


def test_a_recurrence_without_a_start_starts_now() -> None:
    """An interval with one interval from now, cron with a run that is due at this moment."""
    moment = at(NOW)
    assert recurrence.first_run(Recurrence(every_s=1800), moment) == (
        moment + timedelta(minutes=30),
        moment + timedelta(minutes=30),
    )
    assert recurrence.first_run(Recurrence(cron="* * * * *"), moment) == (moment, moment)
    assert recurrence.first_run(Recurrence(cron="1 20 * * *"), moment) == (
        moment,
        moment + timedelta(minutes=1),
    )
    assert recurrence.first_run(Recurrence(cron="* * * * *", start_in_s=7), moment) == (
        moment + timedelta(seconds=7),
        moment + timedelta(seconds=7),
    )
