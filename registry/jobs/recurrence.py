"""When a schedule's runs are: from one moment to the next, by cron or by an interval. Nothing is stored here.

Cron expressions are read by cronsim, as Debian's cron reads them: five fields, or six with seconds first. In
their time zone, a time of day that a clock change skips comes right after the gap, and one that comes twice
counts once; expressions with `*` in minutes or hours go on by elapsed time.
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


class When(msgspec.Struct, frozen=True, kw_only=True):
    """When runs are wanted: `cron` in `timezone`, or every `every_s` seconds.

    `start_at`: no run is before it, and intervals count from it. `start_in_s` (from now) is the moment of the
    first run itself, also with `cron`.
    """

    cron: str | None = None
    every_s: float | None = None
    timezone: str = "UTC"
    start_at: datetime | None = None
    start_in_s: float | None = None


class First(NamedTuple):
    start_at: datetime
    run_at: datetime


def first(when: When, moment: datetime) -> First:
    """From when on, and the first run from `moment` on. What lies before `moment` was never due.

    Raises `Invalid` naming the field.
    """
    _check(when)
    if when.start_in_s is not None:
        start = moment + timedelta(seconds=when.start_in_s)
    else:
        start = when.start_at or moment + timedelta(seconds=when.every_s or 0)
    if abs(start - moment) > MAX_START:
        raise invalid_field("start_at", f"{start.isoformat()} is too far away", "a moment within 100 years")
    if when.start_in_s is not None:
        return First(start, start)
    run_at = following(msgspec.structs.replace(when, start_at=start), max(moment, start) - INSTANT)
    if run_at is None:
        raise invalid_field("cron", f"{when.cron!r} never comes", "an expression with a run to come")
    return First(start, run_at)


def after(when: When, moment: datetime) -> Iterator[datetime]:
    """The moments of runs later than `moment`, in UTC. `when` has a `start_at`. Raises `Invalid`."""
    assert when.start_at is not None
    if when.every_s is not None:
        step = timedelta(seconds=when.every_s)
        number = max(0, (moment - when.start_at) // step + 1)  # from the start, so that nothing drifts
        while True:
            yield when.start_at + number * step
            number += 1
    moment = max(moment, when.start_at - INSTANT)
    for found in _cron(when, moment):
        if (run_at := found.astimezone(UTC)) > moment:  # the hour that comes twice begins in the past
            yield run_at
            moment = run_at


def following(when: When, moment: datetime) -> datetime | None:
    """The first run later than `moment`, or None when there is none for 50 years. Raises `Invalid`."""
    return next(after(when, moment), None)


def between(when: When, start: datetime, end: datetime, most: int) -> list[datetime]:
    """Up to `most` moments of runs that are later than `start` and not later than `end`."""
    return list(islice(takewhile(lambda m: m <= end, after(when, start)), most))


def newest(when: When, end: datetime, count: int) -> datetime | None:
    """The first of the `count` newest runs up to `end`, or None when there are fewer."""
    if when.every_s is not None:
        return following(when, end - count * timedelta(seconds=when.every_s))
    earlier = list(islice(_cron(when, end + INSTANT, reverse=True), count))
    return following(when, earlier[-1].astimezone(UTC) - INSTANT) if len(earlier) == count else None


def _cron(when: When, moment: datetime, reverse: bool = False) -> CronSim:
    try:
        return CronSim(when.cron or "", moment.astimezone(_zone(when.timezone)), reverse)
    except CronSimError as error:
        expected = "minute hour day month weekday, as in 0 3 * * MON"
        raise invalid_field("cron", f"{when.cron!r} is no cron expression: {error}", expected) from error


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # unknown; not a name; a directory of names
        raise invalid_field(
            "timezone", f"there is no time zone {name!r}", "an IANA name: Europe/Berlin"
        ) from error


def _check(when: When) -> None:
    if (when.cron is None) == (when.every_s is None):
        raise invalid_field("cron", "a schedule has either cron or every_s", "one of cron and every_s")
    if when.start_at is not None and when.start_in_s is not None:
        raise invalid_field("start_at", "a schedule has start_at or start_in_s, not both", "one of the two")
    if when.every_s is not None and not MIN_EVERY_S <= when.every_s <= MAX_EVERY_S:
        raise invalid_field("every_s", f"{when.every_s:g} s is out of bounds", "1 second to 10 years")
    if when.start_in_s is not None and not 0 <= when.start_in_s <= MAX_EVERY_S:
        raise invalid_field("start_in_s", f"{when.start_in_s:g} s is out of bounds", "0 seconds to 10 years")
    if when.start_at is not None and when.start_at.tzinfo is None:
        raise invalid_field("start_at", "this time has no zone", "RFC 3339: 2027-01-04T03:00:00Z")
    _zone(when.timezone)
