"""`trivium batch score`: rows in a file or a directory, scored by the server, the output beside you."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Exit, Option, echo

from service.cli.progress import follow
from service.cli.report import failure_lines, scored_line
from service.cli.shared import Json, connect, emit, model_ref, say
from service.cli.transfer import fetch, upload

if TYPE_CHECKING:
    from service.client import Client, Record

OUTPUTS = {
    ".parquet": "application/vnd.apache.parquet",
    ".csv": "text/csv",
    ".jsonl": "application/x-ndjson",
    ".ndjson": "application/x-ndjson",
}

Data = Annotated[
    str,
    Argument(
        metavar="DATA",
        show_default=False,
        help="A file (.csv .parquet .jsonl .ndjson .arrow .feather; text also .gz), a directory of such "
        "files, or a URI that the server can read.",
    ),
]
Version = Annotated[str, Option("--model", metavar="MODEL", help="name, name@alias or name:version.")]
Out = Annotated[
    Path | None, Option(dir_okay=False, help="Where the scores go: .parquet, .csv, .jsonl or .ndjson.")
]
IdColumn = Annotated[str | None, Option(help="A column that goes into the output and the errors file.")]
Passthrough = Annotated[
    list[str] | None, Option(metavar="COLUMN", help="One more column for the output; may be repeated.")
]
ErrorThreshold = Annotated[
    float | None, Option(min=0, max=1, help="The job fails when a larger share of the rows does.")
]
MediaType = Annotated[str | None, Option(help="What is in DATA, when its name does not say it.")]


def score(
    data: Data,
    model: Version,
    out: Out = None,
    id_column: IdColumn = None,
    passthrough: Passthrough = None,
    error_threshold: ErrorThreshold = None,
    max_attempts: Annotated[
        int | None, Option(min=1, help="Per partition: one run and the retries (4).")
    ] = None,
    engine: Annotated[str | None, Option(help="local or ray.")] = None,
    media_type: MediaType = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Only check the first rows.")] = False,
    no_wait: Annotated[bool, Option("--no-wait", help="Do not wait for the job.")] = False,
    json: Json = False,
) -> None:
    """Score all rows of a file or a directory, and fetch the output.

    Rows that cannot be scored are listed in OUT.errors.csv, with the reason. Exit code 1 when the job fails.
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
    request = {key: value for key, value in asked.items() if value is not None}
    with connect() as client:
        record = _started(client, data, media_type, request)
        if dry_run:
            emit(json, record, lambda: echo("\n".join(_checked(record))))
        elif no_wait:
            hint = f"follow it with `trivium jobs watch {record['id']}`"
            emit(json, record, lambda: echo(f"job {record['id']} is {record['state']}; {hint}"))
        else:
            _finish(client, follow(client, record["id"]), out, json)


def _output(out: Path | None, needed: bool) -> dict[str, str] | None:
    if out is None:
        if needed:
            raise BadParameter("say where the scores go with --out FILE")
        return None
    if out.suffix.lower() not in OUTPUTS:
        raise BadParameter(f"--out {out}: scores are written as {', '.join(OUTPUTS)}")
    if not out.absolute().parent.is_dir():
        raise BadParameter(f"--out {out}: there is no directory {out.parent}")
    return {"media_type": OUTPUTS[out.suffix.lower()]}


def _started(client: Client, data: str, media_type: str | None, request: Record) -> Record:
    """The job. A server on this machine reads the data where they are, if it may; else they are uploaded."""
    from service.client import ServerRefused

    said = {"media_type": media_type} if media_type else {}
    if "://" in data:
        return _sent(client, request | {"input": {"uri": data, **said}})
    place = Path(data)
    if not place.exists():
        raise BadParameter(f"{data}: there is no such file")
    refusal = "the server does not run on this machine"
    if client.is_local:
        try:
            return _sent(client, request | {"input": {"uri": place.resolve().as_uri(), **said}})
        except ServerRefused as refused:
            fields = [error.get("field") for error in refused.problem.get("errors") or ()]
            if "input.uri" not in fields:
                raise
            refusal = str(refused)
    if place.is_dir():
        raise BadParameter(
            f"{data} is a directory, and only files can be uploaded; the server reads directories that are "
            f"inside its TRIVIUM_BATCH_ROOTS, under the address they have there, file:///...; now: {refusal}"
        )
    media_type = media_type or _media_type(place)
    return _sent(client, request | {"input": {"artifact": upload(client, place), "media_type": media_type}})


def _sent(client: Client, request: Record) -> Record:
    from service.client import jobs, path

    if request.get("dry_run"):
        checked: Record = client.call("POST", path("jobs"), request)
        return checked
    return jobs.start(client, request)


def _media_type(file: Path) -> str:
    from service.batch.places import SUFFIXES, by_name

    found = by_name(str(file))
    if found is None:
        raise BadParameter(
            f"{file}: its name does not say what is in it ({' '.join(SUFFIXES)}); --media-type does"
        )
    return found


def _checked(found: Record) -> list[str]:
    good = found["rows_checked"] - found["rows_failed"]
    line = (
        f"{found['model']}:{found['version']} can score {good:,} of the first {found['rows_checked']:,} rows"
    )
    return [line, *(f"warning: {warning}" for warning in found["warnings"])]


def _finish(client: Client, record: Record, out: Path | None, json: bool) -> None:
    """Fetch what an ended job made, the errors before the output: when that is there, all is."""
    if record["state"] != "done" or out is None:
        emit(json, record, lambda: None)
        say("\n".join(failure_lines(record)))
        raise Exit(1)
    errors = out.with_name(f"{out.name}.errors.csv")
    if record["errors"]:
        fetch(client, record["errors"], errors)
    else:
        errors.unlink(missing_ok=True)  # of a run before this one
    size = fetch(client, record["output"], out)
    lines = [f"{scored_line(record)}: {out}, {size:,} bytes"]
    if record["errors"]:
        lines.append(f"not scored: {record['rows_failed']:,}, see {errors}")
    emit(json, record, lambda: echo("\n".join(lines)))
