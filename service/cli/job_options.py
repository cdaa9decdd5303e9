"""Options of the commands that start jobs, and how a job is started with the rows in DATA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option

from registry import media_types
from registry.names import clean_file_name
from registry.vocabulary import ATTEMPTS_LIMIT, DEFAULT_MAX_ATTEMPTS, ENGINES
from service.cli.transfer import upload_file

if TYPE_CHECKING:
    from service.client import Client, Record

Data = Annotated[
    str,
    Argument(
        metavar="DATA",
        show_default=False,
        help=f"A file ({' '.join(media_types.TYPE_BY_SUFFIX)}; text files also with "
        f"{', '.join(media_types.COMPRESSION_SUFFIXES)}), a directory of such files, or a URI that the "
        "server can read.",
    ),
]
MediaType = Annotated[
    str | None,
    Option(help=f"The format of DATA, if it has no known suffix: {', '.join(media_types.INPUT_TYPES)}."),
]
MaxAttempts = Annotated[
    int | None,
    Option(min=1, max=ATTEMPTS_LIMIT, help=f"Attempts per partition (default {DEFAULT_MAX_ATTEMPTS})."),
]
EngineOption = Annotated[str | None, Option("--engine", help=f"{' or '.join(ENGINES)}.")]
IdColumn = Annotated[str | None, Option(help="A column to copy to the output and to the errors file.")]
Passthrough = Annotated[
    list[str] | None, Option(metavar="COLUMN", help="A column to copy to the output; may be repeated.")
]
ErrorThreshold = Annotated[
    float | None,
    Option(
        min=0,
        max=1,
        help="Fail the job when more than this share of the rows cannot be scored (default: only when no row "
        "can be scored).",
    ),
]
NoWait = Annotated[bool, Option("--no-wait", help="Start the job and do not wait for it.")]


def start_job(client: Client, data: str, media_type: str | None, request: Record) -> Record:
    """Start a job over `data` and return its record; for a dry run, the report.

    The server reads the data in place if it runs on this machine and may read them; else they are uploaded.
    """
    from service.client import ServerRefused

    type_field = {"media_type": media_type} if media_type else {}
    if "://" in data:
        return _post_job(client, request | {"input": {"uri": data, **type_field}})
    path = Path(data)
    if not path.exists():
        raise BadParameter(f"{data}: no such file or directory")
    is_outside_roots = False
    if client.is_local:
        try:
            return _post_job(client, request | {"input": {"uri": path.resolve().as_uri(), **type_field}})
        except ServerRefused as refused:
            fields = [error.get("field") for error in refused.problem.get("errors") or ()]
            is_outside_roots = "batch root" in str(refused)
            if "input.uri" not in fields or (path.is_dir() and not is_outside_roots):
                raise
    if path.is_dir():
        remedy = (
            "move it into one of them, or the operator adds its place there"
            if is_outside_roots
            else "pass the directory's URI on the server, file:///..."
        )
        raise BadParameter(
            f"{data} is a directory, and only files can be uploaded. The server reads directories inside its "
            f"batch roots (TRIVIUM_BATCH_ROOTS): {remedy}"
        )
    media_type = media_type or _guess_media_type(path)
    uploaded = {"artifact": upload_file(client, path), "media_type": media_type}
    if file_name := clean_file_name(path.name):
        uploaded["file_name"] = file_name
    return _post_job(client, request | {"input": uploaded})


def _post_job(client: Client, request: Record) -> Record:
    from service.client import jobs, path

    if request.get("dry_run"):
        report: Record = client.call("POST", path("jobs"), request)
        return report
    return jobs.start(client, request)


def _guess_media_type(file: Path) -> str:
    from service.submit.input_locations import media_type_by_name

    media_type = media_type_by_name(str(file))
    if media_type is None:
        raise BadParameter(
            f"{file}: the suffix is not one of {' '.join(media_types.TYPE_BY_SUFFIX)}; set --media-type to "
            f"{' or '.join(media_types.INPUT_TYPES)}"
        )
    return media_type
