"""`trivium jobs`: what the server has done, does and will do; stop a job, go on with it, fetch its files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option, echo

from service.cli.progress import follow, require_done
from service.cli.record_lines import accepted_line, job_lines
from service.cli.shared import Json, connect, emit, only_name, say, table, when
from service.cli.transfer import fetch, require_directory
from service.formats import media_types

if TYPE_CHECKING:
    from service.client import Record

PARTITIONS = ("partition", "stage", "file", "state", "rows", "failed", "attempts", "worker", "error")

JobId = Annotated[int, Argument(metavar="ID", min=1, help="The job's id, from `trivium jobs`.")]
Out = Annotated[Path | None, Option(dir_okay=False, help="Write it here, not to stdout.")]
Partition = Annotated[
    int | None, Option(min=0, help="Of a job that is not done: this partition alone, which is.")
]


def list_jobs(
    state: Annotated[str | None, Option(help="queued, running, done, failed or cancelled.")] = None,
    model: Annotated[str | None, Option(metavar="NAME", help="Only jobs of this model.")] = None,
    json: Json = False,
) -> None:
    """List the jobs, newest first."""
    from service.client import path

    asked = {"state": state, "model": only_name(model) if model else None}
    with connect() as client:
        page = client.pages(path("jobs"), asked)
    columns = ("id", "kind", "model", "state", "rows", "failed", "created (UTC)", "by")
    rows = (
        [
            j["id"],
            j["kind"],
            _model(j),
            _state(j),
            f"{j['rows_done'] + j['rows_failed']:,}",
            f"{j['rows_failed']:,}",
            when(j["created_at"]),
            j["schedule"] or j["created_by"],
        ]
        for j in page["items"]
    )
    emit(json, page, lambda: table(columns, rows, "no jobs"))


def show(job: JobId, json: Json = False) -> None:
    """Show a job, partition by partition."""
    from service.client import jobs

    with connect() as client:
        record = jobs.get(client, job)
    emit(json, record, lambda: _show(record))


def watch(job: JobId, json: Json = False) -> None:
    """Follow a job to its end.

    Exit code 1 when it fails or is cancelled.
    """
    with connect() as client:
        record = follow(client, job)
    require_done(record, json)
    emit(json, record, lambda: echo("\n".join(job_lines(record))))


def cancel(job: JobId, json: Json = False) -> None:
    """Stop a job. What is done is kept, and `resume` goes on from there."""
    from service.client import jobs

    with connect() as client:
        record = jobs.cancel(client, job)
    emit(json, record, lambda: say(f"job {job} is {record['state']}"))


def resume(job: JobId, json: Json = False) -> None:
    """Go on with a failed or cancelled job. What is done is not done again."""
    from service.client import jobs

    with connect() as client:
        record = jobs.resume(client, job)
    emit(json, record, lambda: say(accepted_line(record)))


def output(job: JobId, out: Out = None, partition: Partition = None, json: Json = False) -> None:
    """Fetch what a job made, in the order of its input."""
    _fetched(job, "output", out, json, partition)


def errors(job: JobId, out: Out = None, json: Json = False) -> None:
    """Fetch the rows of a job that could not be scored, and why."""
    _fetched(job, "errors", out, json)


def _fetched(job: int, what: str, out: Path | None, json: bool, partition: int | None = None) -> None:
    from service.client import download, jobs, path

    if out is not None:
        require_directory(out)
    if json and out is None:
        raise BadParameter("--json prints the job's record; say with --out where the file goes")
    with connect() as client:
        record = jobs.get(client, job)
        part = () if partition is None else ("partitions", partition)
        url = path("jobs", job, *part, what)
        made = media_types.CSV if what == "errors" else record["spec"].get("output", {}).get("media_type")
        if out is not None:
            _check_suffix(out, made, f"the {what} of job {job}")
            size = fetch(client, url, out)
            emit(json, record, lambda: say(f"{out}, {size:,} bytes"))
            return
        if made == media_types.PARQUET and sys.stdout.isatty():
            raise BadParameter("Parquet is not for a terminal; say with --out where the file goes")
        for block in download.checked(client, download.look(client, url)):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()


def _check_suffix(out: Path, made: str | None, what: str) -> None:
    """Raises `BadParameter` when the name of `out` says another format than the bytes will be of. `made` is
    None for a training, which has no output: the server says so."""
    if made is not None and media_types.BY_SUFFIX.get(out.suffix.lower(), made) != made:
        raise BadParameter(
            f"--out {out}: {what} is {made}; name it {' or '.join(media_types.SUFFIXES[made])}"
        )


def _show(record: Record) -> None:
    echo("\n".join(job_lines(record)))
    rows = (
        [
            p["number"],
            p["stage"],
            p["file"],
            p["state"],
            f"{p['rows']:,}",
            f"{p['failed']:,}",
            p["attempts"],
            p["worker"],
            p["error"],
        ]
        for p in record["partitions"]
    )
    table(PARTITIONS, rows, "no partitions yet")


def _state(record: Record) -> str:
    """`running 42%`, where it can be known."""
    total = record["rows_total"] if record["state"] == "running" else None
    done = record["rows_done"] + record["rows_failed"]
    return f"{record['state']} {done / total:.0%}" if total else str(record["state"])


def _model(record: Record) -> str | None:
    version = "" if record["version"] is None else f":{record['version']}"
    return record["model"] and f"{record['model']}{version}"
