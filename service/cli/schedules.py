"""`trivium schedules`: create, list, change, pause and delete schedules, and start their jobs by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option, echo

from registry.media_types import OUTPUT_TYPE_BY_SUFFIX
from registry.vocabulary import SCORE
from service.cli.connection import connect
from service.cli.descriptions import (
    accepted_line,
    last_run_cells,
    requested_model,
    run_state,
    schedule_line,
    schedule_lines,
    schedule_times,
)
from service.cli.job_options import (
    EngineOption,
    ErrorThreshold,
    IdColumn,
    MaxAttempts,
    MediaType,
    Passthrough,
)
from service.cli.options import Json, parse_model, parse_span, without_none
from service.cli.output import format_time, print_message, print_record, print_table

if TYPE_CHECKING:
    from service.client import Client, Record

OUTPUT_FORMATS = {
    suffix.removeprefix("."): media_type for suffix, media_type in OUTPUT_TYPE_BY_SUFFIX.items()
}

ScheduleName = Annotated[str, Argument(metavar="NAME", show_default=False, help="The schedule's name.")]
ScheduleModel = Annotated[
    str | None, Option("--model", metavar="MODEL", help="name, name@alias or name:version.")
]
ScheduleData = Annotated[
    str | None,
    Option("--data", metavar="LOCATION", help="The rows to score: a file, a directory or a URI."),
]
JobFile = Annotated[
    Path | None,
    Option(
        "--job",
        exists=True,
        dir_okay=False,
        help="A JSON file with the body of POST /v1/jobs, in place of --model and --data.",
    ),
]
ReplacementJob = Annotated[
    Path | None,
    Option(
        "--job",
        exists=True,
        dir_okay=False,
        help="A JSON file with the body of POST /v1/jobs that replaces the schedule's job.",
    ),
]
Cron = Annotated[str | None, Option(help='minute hour day month weekday, such as "0 3 * * MON".')]
Every = Annotated[
    str | None, Option(metavar="SPAN", help="Time between runs, in place of --cron: 1w, 30m, 1h30m, 5s.")
]
Timezone = Annotated[
    str | None, Option(metavar="ZONE", help="Time zone for --cron, such as Europe/Berlin (default UTC).")
]
StartIn = Annotated[
    str | None, Option(metavar="SPAN", help="Time from now to the first run, such as 5s or 2h.")
]
StartAt = Annotated[
    str | None, Option(metavar="TIME", help="No run starts before this time, such as 2027-01-04T03:00:00Z.")
]
CatchUp = Annotated[bool, Option("--catch-up", help="Start missed runs later, one after another.")]
Overlap = Annotated[bool, Option("--overlap", help="Start a run while the previous one is unfinished.")]
OutputFormat = Annotated[
    str | None, Option("--out", metavar="FORMAT", help=f"The output's format: {', '.join(OUTPUT_FORMATS)}.")
]


def create(
    name: ScheduleName,
    model: ScheduleModel = None,
    data: ScheduleData = None,
    job: JobFile = None,
    cron: Cron = None,
    every: Every = None,
    timezone: Timezone = None,
    start_in: StartIn = None,
    start_at: StartAt = None,
    out: OutputFormat = None,
    id_column: IdColumn = None,
    passthrough: Passthrough = None,
    error_threshold: ErrorThreshold = None,
    max_attempts: MaxAttempts = None,
    engine: EngineOption = None,
    media_type: MediaType = None,
    catch_up: CatchUp = False,
    overlap: Overlap = False,
    paused: Annotated[bool, Option("--paused", help="Create the schedule paused.")] = False,
    json: Json = False,
) -> None:
    """Create a schedule.

    Each run scores --data with the version that the alias points at by then, or starts the job in --job. One
    of --cron and --every is required.
    """
    from service.client import path

    times = _request_times(cron, every, timezone, start_in, start_at)
    if cron is None and every is None:
        raise BadParameter('--cron or --every is required: --cron "0 3 * * MON" or --every 1w')
    if timezone and not cron:
        raise BadParameter(
            "--timezone applies only to --cron; remove --timezone or replace --every by --cron"
        )
    options: Record = {
        "id_column": id_column,
        "passthrough": passthrough,
        "error_threshold": error_threshold,
        "max_attempts": max_attempts,
        "engine": engine,
    }
    if job and any((model, data, out, media_type, *without_none(options))):
        raise BadParameter("--job describes the whole job; remove --model, --data and the options of the job")
    with connect() as client:
        if job:
            body = _read_job(job)
        else:
            body = _score_request(client, model, data, media_type, out) | without_none(options)
        rules = {"catch_up": catch_up, "overlap": overlap, "paused": paused}
        record = client.create(path("schedules"), {"name": name, "job": body, **times, **rules})
    print_record(json, record, lambda: _print_schedule(record))


def list_schedules(json: Json = False) -> None:
    """List schedules."""
    from service.client import path

    with connect() as client:
        page = client.pages(path("schedules"))
    columns = ("name", "runs", "kind", "model", "next (UTC)", "last (UTC)", "outcome", "job", "is")
    rows = (
        [
            s["name"],
            schedule_times(s),
            s["job"]["kind"],
            requested_model(s["job"]),
            "paused" if s["paused"] else format_time(s["next_at"]),
            *last_run_cells(s),
        ]
        for s in page["items"]
    )
    print_record(json, page, lambda: print_table(columns, rows, "no schedules"))


def show(name: ScheduleName, json: Json = False) -> None:
    """Show a schedule, its job and its last run."""
    from service.client import path

    with connect() as client:
        record = client.call("GET", path("schedules", name))
    print_record(json, record, lambda: echo("\n".join(schedule_lines(record))))


def edit(
    name: ScheduleName,
    job: ReplacementJob = None,
    cron: Cron = None,
    every: Every = None,
    timezone: Timezone = None,
    start_in: StartIn = None,
    start_at: StartAt = None,
    catch_up: Annotated[bool | None, Option(help="Start missed runs later, one after another.")] = None,
    overlap: Annotated[bool | None, Option(help="Start a run while the previous one is unfinished.")] = None,
    json: Json = False,
) -> None:
    """Change when a schedule runs, or the job it starts.

    Settings that are not named are kept.
    """
    rules: Record = {"catch_up": catch_up, "overlap": overlap, "job": _read_job(job) if job else None}
    changes = _request_times(cron, every, timezone, start_in, start_at) | without_none(rules)
    if not changes:
        raise BadParameter("nothing to change: add an option such as --every 1w; see --help")
    _update(name, changes, json)


def pause(name: ScheduleName, json: Json = False) -> None:
    """Start no runs until the schedule is resumed.

    A job that is running continues.
    """
    _update(name, {"paused": True}, json)


def resume(name: ScheduleName, json: Json = False) -> None:
    """Start runs again, beginning with the next one due."""
    _update(name, {"paused": False}, json)


def run(name: ScheduleName, json: Json = False) -> None:
    """Start the schedule's job now, also when it is paused."""
    from service.client import path

    with connect() as client:
        job = client.create(path("schedules", name, "run"), None)
    print_record(json, job, lambda: print_message(accepted_line(job)))


def history(name: ScheduleName, json: Json = False) -> None:
    """List the runs that were due, newest first."""
    from service.client import path

    with connect() as client:
        page = client.pages(path("schedules", name, "runs"))
    columns = ("due (UTC)", "outcome", "job", "is", "at (UTC)", "reason")
    rows = (
        [
            format_time(r["due_at"]),
            r["outcome"],
            r["job"],
            run_state(r),
            format_time(r["at"]),
            r["reason"],
        ]
        for r in page["items"]
    )
    print_record(json, page, lambda: print_table(columns, rows, "no runs yet"))


def delete(name: ScheduleName, json: Json = False) -> None:
    """Delete a schedule and its history.

    Jobs that it started stay.
    """
    from service.client import path

    with connect() as client:
        record = client.call("GET", path("schedules", name))
        client.call("DELETE", path("schedules", name))
    print_record(json, record, lambda: print_message(f"schedule {name} is deleted"))


def _print_schedule(record: Record) -> None:
    print_message(f"schedule {record['name']}: {schedule_line(record)}")
    for warning in record["warnings"]:
        print_message(f"warning: {warning}")


def _request_times(
    cron: str | None, every: str | None, timezone: str | None, start_in: str | None, start_at: str | None
) -> Record:
    """Return the request's fields for the options of time."""
    times: Record = {
        "cron": cron,
        "every_s": parse_span(every),
        "timezone": timezone,
        "start_at": start_at,
        "start_in_s": parse_span(start_in),
    }
    return without_none(times)


def _score_request(
    client: Client, model: str | None, data: str | None, media_type: str | None, out: str | None
) -> Record:
    """Return the body of POST /v1/jobs that scores `data` with `model`."""
    if model is None or data is None:
        raise BadParameter("--model and --data are required, or --job with the whole job")
    ref = parse_model(model)
    location: Record = {"uri": _server_uri(client, data)}
    request: Record = {
        "kind": SCORE,
        "model": ref.name,
        "version": ref.version,
        "alias": ref.alias,
        "input": location | ({"media_type": media_type} if media_type else {}),
        "output": {"media_type": _output_media_type(out)} if out else None,
    }
    return without_none(request)


def _server_uri(client: Client, data: str) -> str:
    """Return a URI on the server. A path may be relative if the server runs on this machine."""
    if "://" in data or not client.is_local:
        return data
    return Path(data).absolute().as_uri()


def _output_media_type(out: str) -> str:
    if out not in OUTPUT_FORMATS:
        raise BadParameter(
            f"--out {out}: a schedule's output is a format, one of {', '.join(OUTPUT_FORMATS)}; "
            "`trivium jobs output` downloads the file of each run"
        )
    return OUTPUT_FORMATS[out]


def _read_job(file: Path) -> Record:
    import msgspec

    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise BadParameter(f"{file}: {error}") from error


def _update(name: str, changes: Record, json: bool) -> None:
    from service.client import path

    with connect() as client:
        record = client.call("PATCH", path("schedules", name), changes)
    print_record(json, record, lambda: _print_schedule(record))
