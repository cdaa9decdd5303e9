"""`trivium jobs`: list jobs, follow, stop and resume them, and download their files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option, echo

from registry import media_types
from registry.media_types import CSV
from registry.vocabulary import JOB_STATES
from service.cli.connection import connect
from service.cli.descriptions import accepted_line, job_lines, job_model, job_state
from service.cli.options import Json, parse_name
from service.cli.output import format_time, print_message, print_record, print_table
from service.cli.progress import follow_job, require_done
from service.cli.transfer import download_file, require_parent_directory

if TYPE_CHECKING:
    from service.client import Record

JobId = Annotated[int, Argument(metavar="ID", min=1, show_default=False, help="The job's id.")]
Out = Annotated[Path | None, Option(dir_okay=False, help="The file to write (default: stdout).")]
Partition = Annotated[
    int | None, Option(min=0, help="Download only this finished partition; the job need not be done.")
]


def list_jobs(
    state: Annotated[str | None, Option(help=f"{', '.join(JOB_STATES[:-1])} or {JOB_STATES[-1]}.")] = None,
    model: Annotated[str | None, Option(metavar="NAME", help="List only jobs of this model.")] = None,
    json: Json = False,
) -> None:
    """List jobs, newest first."""
    from service.client import path

    with connect() as client:
        page = client.pages(path("jobs"), {"state": state, "model": parse_name(model) if model else None})
    columns = ("id", "kind", "model", "state", "rows", "failed", "created (UTC)", "by")
    rows = (
        [
            j["id"],
            j["kind"],
            job_model(j),
            job_state(j),
            f"{j['rows_done'] + j['rows_failed']:,}",
            f"{j['rows_failed']:,}",
            format_time(j["created_at"]),
            j["schedule"] or j["created_by"],
        ]
        for j in page["items"]
    )
    print_record(json, page, lambda: print_table(columns, rows, "no jobs"))


def show(job: JobId, json: Json = False) -> None:
    """Show a job and its partitions."""
    from service.client import jobs

    with connect() as client:
        record = jobs.get(client, job)
    print_record(json, record, lambda: _print_job(record))


def watch(job: JobId, json: Json = False) -> None:
    """Follow a job until it ends.

    The exit code is 1 when the job fails or is cancelled.
    """
    with connect() as client:
        record = follow_job(client, job)
    require_done(record, json)
    print_record(json, record, lambda: echo("\n".join(job_lines(record))))


def cancel(job: JobId, json: Json = False) -> None:
    """Stop a job.

    Finished partitions are kept, and `trivium jobs resume` continues the job.
    """
    from service.client import jobs

    with connect() as client:
        record = jobs.cancel(client, job)
    print_record(json, record, lambda: print_message(f"job {job} is {record['state']}"))


def resume(job: JobId, json: Json = False) -> None:
    """Continue a failed or cancelled job.

    Finished partitions are not computed again.
    """
    from service.client import jobs

    with connect() as client:
        record = jobs.resume(client, job)
    print_record(json, record, lambda: print_message(accepted_line(record)))


def output(job: JobId, out: Out = None, partition: Partition = None, json: Json = False) -> None:
    """Download a job's output.

    The rows are in the order of the input.
    """
    _download(job, "output", out, json, partition)


def errors(job: JobId, out: Out = None, json: Json = False) -> None:
    """Download the list of failed rows with the reasons."""
    _download(job, "errors", out, json)


def _download(job: int, resource: str, out: Path | None, json: bool, partition: int | None = None) -> None:
    """Download `output` or `errors` of a job to `out` or to stdout."""
    from service.client import download, jobs, path

    if out is not None:
        require_parent_directory(out)
    if json and out is None:
        raise BadParameter("--json prints the job's record, so the file needs --out FILE")
    with connect() as client:
        record = jobs.get(client, job)
        part = () if partition is None else ("partitions", partition)
        url = path("jobs", job, *part, resource)
        media_type = CSV if resource == "errors" else record["spec"].get("output", {}).get("media_type")
        if out is not None:
            _check_suffix(out, media_type, f"the {resource} of job {job}")
            size = download_file(client, url, out)
            print_record(json, record, lambda: print_message(f"{out}, {size:,} bytes"))
            return
        if media_type in media_types.BINARY_TYPES and sys.stdout.isatty():
            raise BadParameter(f"the output is {media_type}, not text; write it to a file with --out FILE")
        for block in download.verified_blocks(client, download.head(client, url)):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()


def _check_suffix(out: Path, media_type: str | None, subject: str) -> None:
    """Raise `BadParameter` when the suffix of `out` belongs to another format.

    `media_type` is None for a training: its result is a version, and the server refuses the call.
    """
    if (
        media_type is not None
        and media_types.TYPE_BY_SUFFIX.get(out.suffix.lower(), media_type) != media_type
    ):
        suffixes = " or ".join(media_types.SUFFIXES[media_type])
        raise BadParameter(f"--out {out}: {subject} is {media_type}; name it {suffixes}")


def _print_job(record: Record) -> None:
    echo("\n".join(job_lines(record)))
    columns = ("partition", "stage", "file", "state", "rows", "failed", "attempts", "worker", "error")
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
    print_table(columns, rows, "no partitions yet")
