"""Times of a schedule's runs: computed from a cron expression or an interval. This module stores nothing.

Cron expressions are evaluated by cronsim, which follows Debian's cron: five fields, or six with seconds
first. In the schedule's time zone, a time of day that a clock change skips runs right after the gap, and one
that occurs twice runs once. Expressions with `*` in minutes or hours follow elapsed time.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from registry.errors import invalid_field

MIN_EVERY_S, MAX_EVERY_S = 1.0, 3650 * 86400.0
MAX_START = timedelta(days=36500)
INSTANT = timedelta(microseconds=1)  # the resolution of a datetime


class Recurrence(msgspec.Struct, frozen=True, kw_only=True):
    """The rule for a schedule's runs: `cron` in `timezone`, or every `every_s` seconds.

    Runs start at `start_at` or later, and intervals are counted from it. `start_in_s` seconds from now is the
    time of the first run itself, also with `cron`.
    """

    cron: str | None = None
    every_s: float | None = None
    timezone: str = "UTC"
    start_at: datetime | None = None
    start_in_s: float | None = None


class FirstRun(NamedTuple):
    start_at: datetime  # the resolved `Recurrence.start_at`
    run_at: datetime


def first_run(rule: Recurrence, moment: datetime) -> FirstRun:
    """Return the start of the schedule and its first run at `moment` or later.

    Runs before `moment` are never due. Raises `Invalid` with the field.
    """
    _check(rule)
    if rule.start_in_s is not None:
        start = moment + timedelta(seconds=rule.start_in_s)
    else:
        start = rule.start_at or moment + timedelta(seconds=rule.every_s or 0)
    if abs(start - moment) > MAX_START:
        message = f"{start.isoformat()} is more than 100 years from now"
        raise invalid_field("start_at", message, "a time within 100 years from now")
    if rule.start_in_s is not None:
        return FirstRun(start, start)
    run_at = next_run(msgspec.structs.replace(rule, start_at=start), max(moment, start) - INSTANT)
    if run_at is None:
        message = f"{rule.cron!r} matches no date in the next 50 years"
        raise invalid_field("cron", message, "an expression that matches a future date")
    return FirstRun(start, run_at)


def runs_after(rule: Recurrence, moment: datetime) -> Iterator[datetime]:
    """Yield the runs later than `moment`, in UTC. `rule.start_at` must be set. Raises `Invalid`."""
    assert rule.start_at is not None
    if rule.every_s is not None:
        step = timedelta(seconds=rule.every_s)
        number = max(0, (moment - rule.start_at) // step + 1)  # counted from the start, to avoid drift
        while True:
            yield rule.start_at + number * step
            number += 1
    moment = max(moment, rule.start_at - INSTANT)
    for local_time in _cron(rule, moment):
        if (run_at := local_time.astimezone(UTC)) > moment:  # a repeated hour yields an earlier time first
            yield run_at
            moment = run_at


def next_run(rule: Recurrence, moment: datetime) -> datetime | None:
    """Return the first run later than `moment`, or None if none is within 50 years. Raises `Invalid`."""
    return next(runs_after(rule, moment), None)


def runs_between(rule: Recurrence, start: datetime, end: datetime, limit: int) -> list[datetime]:
    """Return up to `limit` runs that are later than `start` and not later than `end`."""
    return list(islice(takewhile(lambda m: m <= end, runs_after(rule, start)), limit))


def nth_last_run(rule: Recurrence, end: datetime, count: int) -> datetime | None:
    """Return the earliest of the last `count` runs up to `end`, or None if there are fewer."""
    if rule.every_s is not None:
        return next_run(rule, end - count * timedelta(seconds=rule.every_s))
    earlier = list(islice(_cron(rule, end + INSTANT, reverse=True), count))
    return next_run(rule, earlier[-1].astimezone(UTC) - INSTANT) if len(earlier) == count else None


def _cron(rule: Recurrence, moment: datetime, reverse: bool = False) -> CronSim:
    try:
        return CronSim(rule.cron or "", moment.astimezone(_zone(rule.timezone)), reverse)
    except CronSimError as error:
        message = f"{rule.cron!r} is not a cron expression: {error}"
        raise invalid_field("cron", message, "minute hour day month weekday, as in 0 3 * * MON") from error


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # unknown; not a name; a directory of names
        raise invalid_field(
            "timezone", f"unknown time zone {name!r}", "an IANA name: Europe/Berlin"
        ) from error


def _check(rule: Recurrence) -> None:
    if (rule.cron is None) == (rule.every_s is None):
        raise invalid_field("cron", "a schedule has either cron or every_s", "one of cron and every_s")
    if rule.start_at is not None and rule.start_in_s is not None:
        raise invalid_field("start_at", "a schedule has start_at or start_in_s, not both", "one of the two")
    if rule.every_s is not None and not MIN_EVERY_S <= rule.every_s <= MAX_EVERY_S:
        raise invalid_field("every_s", f"{rule.every_s:g} s is out of range", "1 second to 10 years")
    if rule.start_in_s is not None and not 0 <= rule.start_in_s <= MAX_EVERY_S:
        raise invalid_field("start_in_s", f"{rule.start_in_s:g} s is out of range", "0 seconds to 10 years")
    if rule.start_at is not None and rule.start_at.tzinfo is None:
        raise invalid_field("start_at", "the time has no UTC offset", "RFC 3339: 2027-01-04T03:00:00Z")
    _zone(rule.timezone)
