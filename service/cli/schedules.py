"""`trivium schedules`: jobs that are started again and again; made, paused, run now, looked back at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option, echo

from service.cli.job_inputs import OUTPUTS, Attempts, Engine, ErrorThreshold, IdColumn, MediaType, Passthrough
from service.cli.record_lines import accepted_line
from service.cli.schedule_lines import (
    last_cells,
    lines,
    model_words,
    rhythm,
    say_made,
    state_words,
)
from service.cli.shared import Json, connect, emit, given, model_ref, say, seconds, table, when

if TYPE_CHECKING:
    from service.client import Client, Record


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
    error_threshold: ErrorThreshold = None,
    max_attempts: Attempts = None,
    engine: Engine = None,
    media_type: MediaType = None,
    catch_up: CatchUp = False,
    overlap: Overlap = False,
    paused: Paused = False,
    json: Json = False,
) -> None:
    """Score data again and again: each run with the version that the alias points to then."""
    from service.client import path

    times = _times(cron, every, timezone, start_in, start_at)
    if cron is None and every is None:
        raise BadParameter('say when it runs: --cron "0 3 * * MON" or --every 1w')
    if timezone and not cron:
        raise BadParameter("a time zone is what --cron is read in; --every has none: leave --timezone out")
    rules = {"catch_up": catch_up, "overlap": overlap, "paused": paused}
    more: Record = {
        "id_column": id_column,
        "passthrough": passthrough,
        "error_threshold": error_threshold,
        "max_attempts": max_attempts,
        "engine": engine,
    }
    if job and any((model, data, out, media_type, *given(more))):
        raise BadParameter(
            "--job says all of what is done; leave out --model, --data and what goes with them"
        )
    with connect() as client:
        asked = _read(job) if job else _scoring(client, model, data, media_type, out) | given(more)
        request = {"name": name, "job": asked, **times, **rules}
        record = client.create(path("schedules"), request)
    emit(json, record, lambda: say_made(record))


def list_schedules(json: Json = False) -> None:
    """List the schedules."""
    from service.client import path

    with connect() as client:
        page = client.pages(path("schedules"))
    columns = ("name", "runs", "kind", "model", "next (UTC)", "last (UTC)", "outcome", "job", "is")
    rows = (
        [
            s["name"],
            rhythm(s),
            s["job"]["kind"],
            model_words(s["job"]),
            "paused" if s["paused"] else when(s["next_at"]),
            *last_cells(s),
        ]
        for s in page["items"]
    )
    emit(json, page, lambda: table(columns, rows, "no schedules"))


def show(name: Schedule, json: Json = False) -> None:
    """Show a schedule: what it starts, when, and what came of its last run."""
    from service.client import path

    with connect() as client:
        record = client.call("GET", path("schedules", name))
    emit(json, record, lambda: echo("\n".join(lines(record))))


def edit(
    name: Schedule,
    job: Job = None,
    cron: Cron = None,
    every: Every = None,
    timezone: Zone = None,
    start_in: StartIn = None,
    start_at: StartAt = None,
    catch_up: Annotated[bool | None, Option(help="Start missed runs too, one after another.")] = None,
    overlap: Annotated[bool | None, Option(help="Start a run though the one before goes on.")] = None,
    json: Json = False,
) -> None:
    """Change when a schedule runs, or with --job what it starts. All else stays."""
    rules: Record = {"catch_up": catch_up, "overlap": overlap, "job": _read(job) if job else None}
    changes = _times(cron, every, timezone, start_in, start_at) | given(rules)
    if not changes:
        raise BadParameter("say what is to change, such as --every 1w; `trivium schedules edit --help`")
    _edit(name, changes, json)


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
        [when(r["due_at"]), r["outcome"], r["job"], state_words(r), when(r["at"]), r["reason"]]
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


def _times(
    cron: str | None, every: str | None, timezone: str | None, start_in: str | None, start_at: str | None
) -> Record:
    times: Record = {
        "cron": cron,
        "every_s": seconds(every),
        "timezone": timezone,
        "start_at": start_at,
        "start_in_s": seconds(start_in),
    }
    return given(times)


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
    emit(json, record, lambda: say_made(record))
