"""`trivium batch score`: rows in a file or a directory, scored by the server, the output beside you."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import BadParameter, Option, echo

from service.cli.job_inputs import (
    OUTPUTS,
    Attempts,
    Data,
    Engine,
    ErrorThreshold,
    IdColumn,
    MediaType,
    NoWait,
    Passthrough,
    started,
)
from service.cli.progress import follow, require_done
from service.cli.record_lines import accepted_line, scored_line
from service.cli.shared import Json, connect, emit, given, model_ref, say
from service.cli.transfer import fetch, require_directory

if TYPE_CHECKING:
    from service.client import Client, Record

Version = Annotated[str, Option("--model", metavar="MODEL", help="name, name@alias or name:version.")]
Out = Annotated[
    Path | None,
    Option(
        dir_okay=False,
        help="The scores' file: .parquet, .csv, .jsonl or .ndjson. Needed but with --dry-run or --no-wait.",
    ),
]


def score(
    data: Data,
    model: Version,
    out: Out = None,
    id_column: IdColumn = None,
    passthrough: Passthrough = None,
    error_threshold: ErrorThreshold = None,
    max_attempts: Attempts = None,
    engine: Engine = None,
    media_type: MediaType = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Only check the first rows.")] = False,
    no_wait: NoWait = False,
    json: Json = False,
) -> None:
    """Score all rows of a file or a directory, and fetch the output.

    Rows that cannot be scored are listed in OUT.errors.csv, with the reason. They do not make the exit code
    1; a job that fails does, because all of its rows cannot be scored or more than --error-threshold allows.
    Ctrl-C asks whether the job shall go on without you.
    """
    ref = model_ref(model)
    asked: Record = {
        "kind": "score",
        "model": ref.name,
        "version": ref.version,
        "alias": ref.alias,
        "output": _output(out, needed=not (dry_run or no_wait)),
        "id_column": id_column,
        "passthrough": passthrough,
        "error_threshold": error_threshold,
        "max_attempts": max_attempts,
        "engine": engine,
        "dry_run": dry_run or None,
    }
    with connect() as client:
        record = started(client, data, media_type, given(asked))
        if dry_run:
            emit(json, record, lambda: echo("\n".join(_checked(record))))
        elif no_wait:
            emit(json, record, lambda: echo(accepted_line(record)))
        else:
            _finish(client, follow(client, record["id"]), out, json)


def _output(out: Path | None, needed: bool) -> dict[str, str] | None:
    if out is None:
        if needed:
            raise BadParameter("say where the scores go with --out FILE")
        return None
    if out.suffix.lower() not in OUTPUTS:
        raise BadParameter(f"--out {out}: scores are written as {', '.join(OUTPUTS)}")
    require_directory(out)
    return {"media_type": OUTPUTS[out.suffix.lower()]}


def _checked(found: Record) -> list[str]:
    good = found["rows_checked"] - found["rows_failed"]
    line = (
        f"{found['model']}:{found['version']} can score {good:,} of the first {found['rows_checked']:,} rows"
    )
    return [line, *(f"warning: {warning}" for warning in found["warnings"])]


def _finish(client: Client, record: Record, out: Path | None, json: bool) -> None:
    """Fetch what an ended job made, the errors before the output: when that is there, all is. A job that
    failed by its bad rows has made the errors."""
    assert out is not None, "`_output` has seen to it"
    errors = out.with_name(f"{out.name}.errors.csv")
    if record["errors"]:
        fetch(client, record["errors"], errors)
        if record["state"] != "done":
            say(f"what is wrong with the rows is in {errors}")
    elif record["state"] == "done":
        errors.unlink(missing_ok=True)  # of a run before this one
    require_done(record, json)
    size = fetch(client, record["output"], out)
    lines = [f"{scored_line(record)}: {out}, {size:,} bytes"]
    if record["errors"]:
        failed, total = record["rows_failed"], record["rows_done"] + record["rows_failed"]
        lines.append(
            f"warning: not scored: {failed:,} of {total:,} rows ({failed / total:.2%}), see {errors}"
        )
    emit(json, record, lambda: echo("\n".join(lines)))
