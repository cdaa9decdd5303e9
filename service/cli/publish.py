"""`trivium publish`: upload, create the version, wait for its build, say what became of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Exit, Option, echo

from service.cli.record_lines import build_lines
from service.cli.shared import Json, Tags, connect, emit, pairs, say
from service.cli.transfer import upload

if TYPE_CHECKING:
    from service.client import Record

FORMATS = {
    ".joblib": "sklearn-joblib",
    ".pkl": "sklearn-joblib",
    ".pickle": "sklearn-joblib",
    ".onnx": "onnx",
    ".keras": "keras",
    ".tflite": "tflite",
}
MEDIA_TYPES = {
    ".csv": "text/csv",
    ".parquet": "application/vnd.apache.parquet",
    ".json": "application/json",
}

File = Annotated[Path, Argument(exists=True, dir_okay=False, readable=True, help="The model's file.")]
Example = Annotated[
    Path | None,
    Option(
        exists=True, dir_okay=False, help="Rows it was made for: .csv, .parquet or .json (a list of objects)."
    ),
]
Format = Annotated[
    str | None,
    Option("--format", help="Guessed from the suffix: .joblib .pkl .pickle .onnx .keras .tflite."),
]
Corrections = Annotated[
    Path | None,
    Option(exists=True, dir_okay=False, help="A JSON file: the signature, or corrections of it."),
]
MadeBy = Annotated[
    list[str] | None,
    Option(
        "--made-by",
        metavar="LIBRARY=VERSION",
        help="What made it, where that is not installed here: python, numpy, scikit-learn. May be repeated.",
    ),
]
Metrics = Annotated[list[str] | None, Option("--metric", metavar="KEY=NUMBER", help="May be repeated.")]


def publish(
    file: File,
    name: Annotated[str, Option("--name", help="The model's name.")],
    example: Example = None,
    target: Annotated[str | None, Option(help="The example's column that holds the true value.")] = None,
    format: Format = None,
    signature: Corrections = None,
    tag: Tags = None,
    metric: Metrics = None,
    made_by: MadeBy = None,
    description: Annotated[str | None, Option(help="What this version is.")] = None,
    alias: Annotated[str | None, Option(help="Move this alias to the version once it is ready.")] = None,
    no_wait: Annotated[bool, Option("--no-wait", help="Do not wait for the build.")] = False,
    json: Json = False,
) -> None:
    """Publish a model's file as a new version, and wait until it is built.

    Exit code 1, and the reason, when the build rejects it.
    """
    request: Record = {
        "format": format or by_suffix(file, FORMATS, "a model's format; say it with --format"),
        "target": target,
        "signature": _read_json(signature) if signature else None,
        "tags": pairs(tag),
        "metrics": _numbers(pairs(metric)),
        "made_by": pairs(made_by),
        "description": description,
        "alias": alias,
    }
    record = _published(name, file, example, request, wait=not no_wait)
    lines = build_lines(record)
    if record["state"] == "rejected":
        emit(json, record, lambda: None)
        say("\n".join(lines))
        raise Exit(1)
    emit(json, record, lambda: echo("\n".join(lines)))


def _published(name: str, file: Path, example: Path | None, request: Record, wait: bool) -> Record:
    """The version that the server made of the files and `request`; with `wait`, once it is built."""
    media_type = (
        by_suffix(example, MEDIA_TYPES, "an example's; use .csv, .parquet or .json") if example else None
    )
    with connect() as client:
        if example:
            request["example"] = {"artifact": upload(client, example), "media_type": media_type}
        request["artifact"] = upload(client, file)
        record = client.publish(
            name, {key: value for key, value in request.items() if value not in (None, {})}
        )
        if wait and record["state"] == "building":
            with waiting(f"building {name}:{record['version']}") as on_state:
                record = client.wait(name, record["version"], on_state, say)
    return record


@contextmanager
def waiting(what: str) -> Iterator[Callable[[Record], None]]:
    """A live status on a terminal, one line elsewhere."""
    if not sys.stderr.isatty():
        say(what)
        yield lambda record: None
        return
    from rich.console import Console

    started = time.monotonic()
    with Console(stderr=True).status(what) as status:
        yield lambda record: status.update(f"{what}, {time.monotonic() - started:.0f} s")


def by_suffix(file: Path, known: dict[str, str], what: str) -> str:
    """What the file's suffix says. Raises `BadParameter` when it says nothing."""
    try:
        return known[file.suffix.lower()]
    except KeyError:
        raise BadParameter(f"{file.name}: the suffix {file.suffix!r} is not known as {what}") from None


def _numbers(given: dict[str, str]) -> dict[str, float]:
    numbers = {}
    for key, value in given.items():
        try:
            numbers[key] = float(value)
        except ValueError:
            raise BadParameter(f"--metric {key}={value}: {value!r} is no number") from None
    return numbers


def _read_json(file: Path) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(file.read_bytes())
    except msgspec.DecodeError as error:
        raise BadParameter(f"{file}: {error}") from error
