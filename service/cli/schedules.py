"""`trivium schedules`: jobs that are started again and again; made, paused, run now, looked back at."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option, echo

from service.cli.batch import OUTPUTS, IdColumn, Passthrough
from service.cli.inputs import MediaType
from service.cli.report import accepted_line
from service.cli.shared import Json, connect, emit, given, model_ref, say, table, when

if TYPE_CHECKING:
    from service.client import Client, Record

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?[smhdw])+")

Schedule = Annotated[str, Argument(metavar="NAME", show_default=False, help="The schedule's name.")]
Model = Annotated[str | None, Option("--model", metavar="MODEL", help="name, name@alias or name:version.")]
Data = Annotated[
    str | None,
    Option(metavar="PLACE", help="What the server scores: a file, a directory or a URI."),
]
Job = Annotated[
    Path | None,
    Option(
        exists=True,
        dir_okay=False,
        help="In place of --model and --data: a body of POST /v1/jobs, as JSON.",
    ),
]
Cron = Annotated[str | None, Option(help='minute hour day month weekday: "0 3 * * MON".')]
Every = Annotated[str | None, Option(metavar="SPAN", help="In place of --cron: 1w, 30m, 1h30m, 5s.")]
Zone = Annotated[str | None, Option(metavar="ZONE", help="That --cron is read in: Europe/Berlin. Else UTC.")]
StartIn = Annotated[str | None, Option(metavar="SPAN", help="The first run is so long from now: 5s.")]
StartAt = Annotated[str | None, Option(metavar="TIME", help="No run is before it: 2027-01-04T03:00:00Z.")]
CatchUp = Annotated[bool, Option("--catch-up", help="Start missed runs too, one after another.")]
Overlap = Annotated[bool, Option("--overlap", help="Start a run though the one before is not finished.")]
Paused = Annotated[bool, Option("--paused", help="Start nothing until it is resumed.")]
Out = Annotated[str | None, Option(metavar="FORMAT", help="parquet, csv or jsonl.")]


def create(
    name: Schedule,
    model: Model = None,
    data: Data = None,
    job: Job = None,
    cron: Cron = None,
    every: Every = None,
    timezone: Zone = None,
    start_in: StartIn = None,
    start_at: StartAt = None,
    out: Out = None,
    id_column: IdColumn = None,
    passthrough: Passthrough = None,
    media_type: MediaType = None,
    catch_up: CatchUp = False,
    overlap: Overlap = False,
    paused: Paused = False,
    json: Json = False,
) -> None:
    """Score data again and again: each run with the version that the alias points to then."""
    from service.client import path

    times: Record = {
        "cron": cron,
        "every_s": seconds(every),
        "timezone": timezone,
        "start_at": start_at,
        "start_in_s": seconds(start_in),
    }
    if timezone and not cron:
        raise BadParameter("a time zone is what --cron is read in; --every has none: leave --timezone out")
    rules = {"catch_up": catch_up, "overlap": overlap, "paused": paused}
    columns = {"id_column": id_column, "passthrough": passthrough}
    if job and any((model, data, out, media_type, id_column, passthrough)):
        raise BadParameter(
            "--job says all of what is done; leave out --model, --data and what goes with them"
        )
    with connect() as client:
        asked = _read(job) if job else _scoring(client, model, data, media_type, out) | given(columns)
        request = {"name": name, "job": asked, **given(times), **rules}
        record = client.create(path("schedules"), request)
    emit(json, record, lambda: _say_made(record))


def list_schedules(json: Json = False) -> None:
    """List the schedules."""
    from service.client import path

    with connect() as client:
        page = client.pages(path("schedules"))
    columns = ("name", "runs", "kind", "model", "next (UTC)", "last (UTC)", "outcome", "job", "is")
    rows = (
        [
            s["name"],
            _rhythm(s),
            s["job"]["kind"],
            _model(s["job"]),
            "paused" if s["paused"] else when(s["next_at"]),
            *_last(s),
        ]
        for s in page["items"]
    )
    emit(json, page, lambda: table(columns, rows, "no schedules"))


def show(name: Schedule, json: Json = False) -> None:
    """Show a schedule: what it starts, when, and what came of its last run."""
    from service.client import path

    with connect() as client:
        record = client.call("GET", path("schedules", name))
    emit(json, record, lambda: echo("\n".join(_lines(record))))


def pause(name: Schedule, json: Json = False) -> None:
    """Start nothing until it is resumed. A job that goes on is not touched."""
    _edit(name, {"paused": True}, json)


def resume(name: Schedule, json: Json = False) -> None:
    """Let it go on, with the next run that is due from now on."""
    _edit(name, {"paused": False}, json)


def run(name: Schedule, json: Json = False) -> None:
    """Start its job now, paused or not."""
    from service.client import path

    with connect() as client:
        job = client.create(path("schedules", name, "run"), None)
    emit(json, job, lambda: say(accepted_line(job)))


def history(name: Schedule, json: Json = False) -> None:
    """What came of each run that was due, newest first."""
    from service.client import path

    with connect() as client:
        page = client.pages(path("schedules", name, "runs"))
    columns = ("due (UTC)", "outcome", "job", "is", "at (UTC)", "reason")
    rows = (
        [when(r["due_at"]), r["outcome"], r["job"], _state(r), when(r["at"]), r["reason"]]
        for r in page["items"]
    )
    emit(json, page, lambda: table(columns, rows, "no runs yet"))


def delete(name: Schedule, json: Json = False) -> None:
    """Delete a schedule and its history. Jobs that it started stay."""
    from service.client import path

    with connect() as client:
        record = client.call("GET", path("schedules", name))
        client.call("DELETE", path("schedules", name))
    emit(json, record, lambda: say(f"schedule {name} is deleted"))


def seconds(span: str | None) -> float | None:
    """`1h30m` as 5400."""
    if span is None:
        return None
    if _SPAN.fullmatch(span) is None:
        raise BadParameter(f"{span!r} is no span of time; write 1w, 30m, 1h30m or 5s")
    return sum(float(number) * UNITS[unit] for number, unit in re.findall(r"([0-9.]+)([smhdw])", span))


def _scoring(
    client: Client, model: str | None, data: str | None, media_type: str | None, out: str | None
) -> Record:
    if model is None or data is None:
        raise BadParameter("say with --model and --data what is scored, or with --job what is done")
    ref = model_ref(model)
    place: Record = {"uri": _uri(client, data)}
    asked: Record = {
        "kind": "score",
        "model": ref.name,
        "version": ref.version,
        "alias": ref.alias,
        "input": place | ({"media_type": media_type} if media_type else {}),
        "output": {"media_type": _output(out)} if out else None,
    }
    return given(asked)


def _uri(client: Client, data: str) -> str:
    """A path is one on the server. When that is this machine, it may be relative."""
    if "://" in data or not client.is_local:
        return data
    return Path(data).absolute().as_uri()


def _output(out: str) -> str:
    if f".{out}" not in OUTPUTS:
        formats = ", ".join(s[1:] for s in OUTPUTS)
        raise BadParameter(
            f"--out {out}: of a schedule this is a format, one of {formats}; `trivium jobs output` fetches "
            "the file of each run"
        )
    return OUTPUTS[f".{out}"]


def _read(job: Path) -> Record:
    import msgspec

    try:
        return msgspec.json.decode(job.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise BadParameter(f"{job}: {error}") from error


def _edit(name: str, changes: Record, json: bool) -> None:
    from service.client import path

    with connect() as client:
        record = client.call("PATCH", path("schedules", name), changes)
    emit(json, record, lambda: say(f"schedule {name}: {_next(record)}"))


def _say_made(record: Record) -> None:
    say(f"schedule {record['name']}: {_next(record)}")
    for warning in record["warnings"]:
        say(f"warning: {warning}")


def _next(record: Record) -> str:
    if record["paused"]:
        return f"paused, else runs {_rhythm(record)}"
    return f"runs {_rhythm(record)}, next at {when(record['next_at'])} UTC"


def _rhythm(record: Record) -> str:
    """`0 3 * * MON Europe/Berlin`, `every 1w`."""
    if record["cron"] is not None:
        return f"{record['cron']} {record['timezone']}"
    unit = next(u for u in reversed(UNITS) if record["every_s"] % UNITS[u] == 0 or u == "s")
    return f"every {record['every_s'] / UNITS[unit]:g}{unit}"


def _model(job: Record) -> str | None:
    name = job.get("model") or job.get("publish", {}).get("name")
    if job.get("version"):
        return f"{name}:{job['version']}"
    return f"{name}@{job['alias']}" if job.get("alias") else name


def _last(record: Record) -> list[object]:
    last = record["last_run"] or {}
    return [when(last.get("at")), last.get("outcome"), last.get("job"), _state(last) if last else None]


def _state(run: Record) -> str | None:
    """How its job is, and the scoring that follows a training."""
    state: str | None = run["job_state"]
    return f"{state}, then {run['then_state']}" if run["then_state"] else state


def _lines(record: Record) -> list[str]:
    at, outcome, job, state = _last(record)
    then = record["job"].get("then")
    missed = "made up for" if record["catch_up"] else "skipped"
    return [
        f"{record['name']}: {_next(record)}",
        f"starts: {record['job']['kind']} {_model(record['job'])} on {_place(record['job'])}",
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
