"""What `trivium schedules` says of a schedule and its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.cli.shared import UNITS, say, when

if TYPE_CHECKING:
    from service.client import Record


def say_made(record: Record) -> None:
    say(f"schedule {record['name']}: {_next(record)}")
    for warning in record["warnings"]:
        say(f"warning: {warning}")


def _next(record: Record) -> str:
    if record["paused"]:
        return f"paused, else runs {rhythm(record)}"
    return f"runs {rhythm(record)}, next at {when(record['next_at'])} UTC"


def rhythm(record: Record) -> str:
    """`0 3 * * MON Europe/Berlin`, `every 1w`."""
    if record["cron"] is not None:
        return f"{record['cron']} {record['timezone']}"
    unit = next(u for u in reversed(UNITS) if record["every_s"] % UNITS[u] == 0 or u == "s")
    return f"every {record['every_s'] / UNITS[unit]:g}{unit}"


def model_words(job: Record) -> str | None:
    name = job.get("model") or job.get("publish", {}).get("name")
    if job.get("version"):
        return f"{name}:{job['version']}"
    return f"{name}@{job['alias']}" if job.get("alias") else name


def last_cells(record: Record) -> list[object]:
    last = record["last_run"] or {}
    return [when(last.get("at")), last.get("outcome"), last.get("job"), state_words(last) if last else None]


def state_words(run: Record) -> str | None:
    """How its job is, and the scoring that follows a training."""
    state: str | None = run["job_state"]
    return f"{state}, then {run['then_state']}" if run["then_state"] else state


def lines(record: Record) -> list[str]:
    at, outcome, job, state = last_cells(record)
    then = record["job"].get("then")
    missed = "made up for" if record["catch_up"] else "skipped"
    return [
        f"{record['name']}: {_next(record)}",
        f"starts: {record['job']['kind']} {model_words(record['job'])} on {_place(record['job'])}",
        *([f"then scores {_place(then)} with what was trained"] if then else []),
        f"a missed run is {missed}; runs may {'overlap' if record['overlap'] else 'not overlap'}",
        f"last run: {outcome} at {at} UTC{f', job {job}, which is {state}' if job else ''}"
        if outcome
        else "no runs yet",
        f"made by {record['created_by']} at {when(record['created_at'])} UTC",
    ]


def _place(asked: Record) -> str:
    """Where the rows of a job are."""
    given = asked["input"]
    return str(given.get("uri") or f"artifact {given['artifact']}")
