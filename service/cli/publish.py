"""`trivium publish`: upload a model file, create a version and wait for its build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Exit, Option, echo

from registry.media_types import EXAMPLE_TYPE_BY_SUFFIX
from registry.vocabulary import FORMAT_SUFFIXES
from service.cli.connection import connect
from service.cli.descriptions import build_lines
from service.cli.exit_codes import FAILURE
from service.cli.options import (
    Json,
    NameOption,
    ReadyAlias,
    Tags,
    lookup_suffix,
    parse_pairs,
)
from service.cli.output import print_message, print_record
from service.cli.progress import build_progress
from service.cli.transfer import upload_file

if TYPE_CHECKING:
    from service.client import Record

FORMAT_BY_SUFFIX = {suffix: name for name, suffixes in FORMAT_SUFFIXES.items() for suffix in suffixes}

File = Annotated[
    Path,
    Argument(
        metavar="FILE",
        exists=True,
        readable=True,
        show_default=False,
        help=f"The model file: {' '.join(FORMAT_BY_SUFFIX)}.",
    ),
]
Example = Annotated[
    Path | None,
    Option(
        exists=True,
        dir_okay=False,
        help=f"Example rows: {' '.join(EXAMPLE_TYPE_BY_SUFFIX)} (a JSON list of objects).",
    ),
]
Answers = Annotated[
    Path | None,
    Option(
        exists=True,
        dir_okay=False,
        help="The model's answers to the example where it was trained: "
        f"{' '.join(EXAMPLE_TYPE_BY_SUFFIX)} with columns label, probability.<class>, value, ..., and the "
        "example's rows in the same order. The version is rejected when it answers differently here.",
    ),
]
FormatOption = Annotated[
    str | None,
    Option("--format", help=f"{', '.join(FORMAT_SUFFIXES)} (default: guessed from the suffix)."),
]
Signature = Annotated[
    Path | None,
    Option(exists=True, dir_okay=False, help="A JSON file that corrects the signature."),
]
MadeBy = Annotated[
    list[str] | None,
    Option(
        "--made-by",
        metavar="LIBRARY=VERSION",
        help="Version of python, numpy or scikit-learn that trained the model, if it differs from the one "
        "installed here; may be repeated.",
    ),
]
Metrics = Annotated[
    list[str] | None, Option("--metric", metavar="KEY=NUMBER", help="A metric; may be repeated.")
]


def publish(
    file: File,
    name: NameOption,
    example: Example = None,
    target: Annotated[str | None, Option(help="The column of the example with the true values.")] = None,
    answers: Answers = None,
    format: FormatOption = None,
    signature: Signature = None,
    tag: Tags = None,
    metric: Metrics = None,
    made_by: MadeBy = None,
    description: Annotated[str | None, Option(help="A description of the version.")] = None,
    alias: ReadyAlias = None,
    no_wait: Annotated[bool, Option("--no-wait", help="Do not wait for the build.")] = False,
    json: Json = False,
) -> None:
    """Publish a model file as a new version.

    Waits until the version is built. When the build rejects the model, the reason is printed and the exit
    code is 1.
    """
    if answers and not example:
        raise BadParameter("--answers needs --example: the rows that were answered")
    tables = {"example": example, "answers": answers}
    request: Record = {
        "format": _format(file, format),
        "target": target,
        "signature": _read_json(signature) if signature else None,
        "tags": parse_pairs(tag),
        "metrics": _parse_numbers(parse_pairs(metric)),
        "made_by": parse_pairs(made_by),
        "description": description,
        "alias": alias,
    }
    record = _publish(name, file, tables, request, wait=not no_wait)
    lines = build_lines(record)
    if record["state"] == "rejected":
        print_record(json, record, lambda: None)
        print_message("\n".join(lines))
        raise Exit(FAILURE)
    lines += [f"{name}@{moved} is version {record['version']}" for moved in record["aliases"]]
    print_record(json, record, lambda: echo("\n".join(lines)))


def _publish(name: str, file: Path, tables: dict[str, Path | None], request: Record, wait: bool) -> Record:
    """Upload the files, create the version and return its record; with `wait`, after its build."""
    media_types = {
        field: lookup_suffix(table, EXAMPLE_TYPE_BY_SUFFIX) for field, table in tables.items() if table
    }
    with connect() as client:
        for field, table in tables.items():
            if table:
                artifact = upload_file(client, table)
                request[field] = {"artifact": artifact, "media_type": media_types[field]}
        request["artifact"] = upload_file(client, file)
        record = client.publish(
            name, {key: value for key, value in request.items() if value not in (None, {})}
        )
        if wait and record["state"] == "building":
            with build_progress(f"building {name}:{record['version']}") as show:
                record = client.wait(name, record["version"], show, print_message)
    return record


def _format(file: Path, option: str | None) -> str:
    """`option`, or the format by the file's suffix. Raises `BadParameter` with what another file is."""
    from service.compiler import foreign_files

    suffix = file.suffix.lower()
    kind = foreign_files.recognize(file) if file.is_dir() or suffix not in FORMAT_BY_SUFFIX else None
    if kind is not None and kind.format is None and (option is None or file.is_dir()):
        raise BadParameter(f"{file.name} is {kind.name}: {kind.remedy}")
    hint = f"; set --format{f' {kind.format}' if kind else ''}"
    return option or lookup_suffix(file, FORMAT_BY_SUFFIX, hint)


def _parse_numbers(pairs: dict[str, str]) -> dict[str, float]:
    numbers = {}
    for key, value in pairs.items():
        try:
            numbers[key] = float(value)
        except ValueError:
            raise BadParameter(f"--metric {key}={value}: {value!r} is not a number") from None
    return numbers


def _read_json(file: Path) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(file.read_bytes())
    except msgspec.DecodeError as error:
        raise BadParameter(f"{file}: {error}") from error
