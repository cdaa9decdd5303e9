"""`trivium batch score`: score a file or a directory on the server and download the output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import BadParameter, Option, echo

from registry.media_types import OUTPUT_TYPE_BY_SUFFIX
from registry.vocabulary import SCORE
from service.cli.connection import connect
from service.cli.descriptions import accepted_line, scored_line
from service.cli.job_options import (
    Data,
    EngineOption,
    ErrorThreshold,
    IdColumn,
    MaxAttempts,
    MediaType,
    NoWait,
    Passthrough,
    start_job,
)
from service.cli.options import Json, ModelOption, parse_model, without_none
from service.cli.output import print_message, print_record
from service.cli.progress import follow_job, require_done
from service.cli.transfer import download_file, require_parent_directory

if TYPE_CHECKING:
    from service.client import Client, Record

Out = Annotated[
    Path | None,
    Option(
        dir_okay=False,
        help=f"The file for the scores: {', '.join(OUTPUT_TYPE_BY_SUFFIX)}. "
        "Required unless --dry-run or --no-wait.",
    ),
]


def score(
    data: Data,
    model: ModelOption,
    out: Out = None,
    id_column: IdColumn = None,
    passthrough: Passthrough = None,
    error_threshold: ErrorThreshold = None,
    max_attempts: MaxAttempts = None,
    engine: EngineOption = None,
    media_type: MediaType = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Check the first rows and start no job.")] = False,
    no_wait: NoWait = False,
    json: Json = False,
) -> None:
    """Score a file or a directory and download the output.

    Rows that cannot be scored are listed in OUT.errors.csv with the reasons; the exit code is still 0. It is
    1 when the job fails: no row can be scored, or more rows fail than --error-threshold allows.

    Ctrl-C offers to leave the job running, to cancel it, or to wait.
    """
    ref = parse_model(model)
    request: Record = {
        "kind": SCORE,
        "model": ref.name,
        "version": ref.version,
        "alias": ref.alias,
        "output": _output_format(out, required=not (dry_run or no_wait)),
        "id_column": id_column,
        "passthrough": passthrough,
        "error_threshold": error_threshold,
        "max_attempts": max_attempts,
        "engine": engine,
        "dry_run": dry_run or None,
    }
    with connect() as client:
        record = start_job(client, data, media_type, without_none(request))
        if dry_run:
            print_record(json, record, lambda: echo("\n".join(_dry_run_lines(record))))
        elif no_wait:
            print_record(json, record, lambda: echo(accepted_line(record)))
        else:
            assert out is not None, "_output_format requires it"
            _download_results(client, follow_job(client, record["id"]), out, json)


def _output_format(out: Path | None, required: bool) -> dict[str, str] | None:
    """Return the request's `output` for the suffix of `--out`."""
    if out is None:
        if required:
            raise BadParameter("--out FILE is required: the file for the scores")
        return None
    if out.suffix.lower() not in OUTPUT_TYPE_BY_SUFFIX:
        raise BadParameter(f"--out {out}: the suffix must be one of {', '.join(OUTPUT_TYPE_BY_SUFFIX)}")
    require_parent_directory(out)
    return {"media_type": OUTPUT_TYPE_BY_SUFFIX[out.suffix.lower()]}


def _dry_run_lines(report: Record) -> list[str]:
    checked = report["rows_checked"]
    good = checked - report["rows_failed"]
    name = f"{report['model']}:{report['version']}"
    line = f"{good:,} of the first {checked:,} rows fit the signature of {name}; the model did not run"
    return [line, *(f"warning: {warning}" for warning in report["warnings"])]


def _download_results(client: Client, record: Record, out: Path, json: bool) -> None:
    """Download the errors file, then the output: once the output exists, both are complete.

    A job that failed because of its rows has an errors file but no output.
    """
    errors = out.with_name(f"{out.name}.errors.csv")
    if record["errors"]:
        download_file(client, record["errors"], errors)
        if record["state"] != "done":
            print_message(f"{errors} lists the rows that failed and the reasons")
    elif record["state"] == "done":
        errors.unlink(missing_ok=True)  # from an earlier run
    require_done(record, json)
    size = download_file(client, record["output"], out)
    lines = [f"{scored_line(record)}: {out}, {size:,} bytes"]
    if record["errors"]:
        failed, total = record["rows_failed"], record["rows_done"] + record["rows_failed"]
        lines.append(
            f"warning: not scored: {failed:,} of {total:,} rows ({failed / total:.2%}), see {errors}"
        )
    print_record(json, record, lambda: echo("\n".join(lines)))
