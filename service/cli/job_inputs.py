"""The rows of a job on their way to it: read where they are, if the server may, else uploaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option

from service.cli.transfer import upload
from service.formats import media_types

if TYPE_CHECKING:
    from service.client import Client, Record

OUTPUTS = {
    suffix: media_type
    for suffix, media_type in media_types.BY_SUFFIX.items()
    if media_type in media_types.OUTPUTS
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
MediaType = Annotated[
    str | None,
    Option(help=f"What is in DATA, when its name does not say it: {' or '.join(media_types.SUFFIXES)}."),
]
Attempts = Annotated[int | None, Option(min=1, help="Per partition: one run and the retries (4).")]
Engine = Annotated[str | None, Option(help="local or ray.")]
IdColumn = Annotated[str | None, Option(help="A column that goes into the output and the errors file.")]
Passthrough = Annotated[
    list[str] | None, Option(metavar="COLUMN", help="One more column for the output; may be repeated.")
]
ErrorThreshold = Annotated[
    float | None,
    Option(
        min=0,
        max=1,
        help="The job fails when a larger share of the rows cannot be scored. Unless it is said, only when "
        "all of them cannot.",
    ),
]
NoWait = Annotated[bool, Option("--no-wait", help="Do not wait for the job.")]


def started(client: Client, data: str, media_type: str | None, request: Record) -> Record:
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
            if "input.uri" not in fields or (place.is_dir() and "batch root" not in str(refused)):
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
    from service.submit.inputs import by_name

    found = by_name(str(file))
    if found is None:
        raise BadParameter(
            f"{file}: its name does not say what is in it ({' '.join(media_types.BY_SUFFIX)}); say it with "
            f"--media-type {' or '.join(media_types.SUFFIXES)}"
        )
    return found
