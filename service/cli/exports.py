"""`trivium export` and `trivium exports`: versions as .tflite files for devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option, echo

from registry.media_types import EXAMPLE_TYPE_BY_SUFFIX
from registry.vocabulary import QUANTIZE_MODES
from service.cli.connection import connect
from service.cli.descriptions import export_lines, rejection_reason
from service.cli.exit_codes import FAILURE
from service.cli.options import (
    Json,
    Model,
    lookup_suffix,
    parse_model,
    without_none,
)
from service.cli.output import format_time, print_message, print_record, print_table
from service.cli.progress import build_progress
from service.cli.transfer import upload_file

if TYPE_CHECKING:
    from service.client import Client, ModelRef, Record

QuantizeOption = Annotated[str, Option("--quantize", help=f"{', '.join(QUANTIZE_MODES)}.")]
Calibration = Annotated[
    Path | None,
    Option(
        exists=True,
        dir_okay=False,
        help=f"Rows to calibrate int8 with: {' '.join(EXAMPLE_TYPE_BY_SUFFIX)} "
        "(default: the version's example).",
    ),
]
MaxDisagreement = Annotated[
    float | None,
    Option(help="Highest share of rows with another label; for numeric outputs, highest relative error."),
]
MaxAccuracyDrop = Annotated[
    float | None, Option(help="Highest loss of accuracy on the example's true values.")
]
MaxBytes = Annotated[
    int | None, Option(help="Largest file size; forests are reduced in trees and leaves to reach it.")
]
ExportId = Annotated[
    int, Argument(metavar="ID", show_default=False, help="The export's id, from `trivium exports MODEL`.")
]


def export(
    model: Model,
    quantize: QuantizeOption = "none",
    calibration: Calibration = None,
    max_disagreement: MaxDisagreement = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
    max_bytes: MaxBytes = None,
    out: Annotated[Path | None, Option(dir_okay=False, help="The .tflite file to write.")] = None,
    json: Json = False,
) -> None:
    """Export a version as a .tflite file.

    A plain name means the champion, or the latest version if there is none. Waits until the file's answers
    are compared with the model's. When they differ too much, the reason is printed and the exit code is 1.
    """
    request: Record = {
        "format": "tflite",
        "quantize": quantize,
        "max_disagreement": max_disagreement,
        "max_accuracy_drop": max_accuracy_drop,
        "max_bytes": max_bytes,
    }
    with _finished_export(parse_model(model), calibration, request) as (client, record):
        lines = "\n".join(export_lines(record))
        if record["state"] != "ready":
            print_record(json, record, lambda: None)
            print_message(lines)
            raise Exit(FAILURE)
        if out is not None:
            _write_atomically(out, client.download(record["sha256"]))
    print_record(json, record, lambda: echo(lines))
    if out is not None:
        print_message(f"written to {out}")


@contextmanager
def _finished_export(
    ref: ModelRef, calibration: Path | None, request: Record
) -> Iterator[tuple[Client, Record]]:
    """Create an export and wait for it; yields the client and the export's record."""
    media_type = lookup_suffix(calibration, EXAMPLE_TYPE_BY_SUFFIX) if calibration else None
    with connect() as client:
        version = _resolve_version(client, ref)
        if calibration:
            request["calibration"] = {"artifact": upload_file(client, calibration), "media_type": media_type}
        record = client.export(ref.name, version, without_none(request))
        if record["state"] == "building":
            with build_progress(f"exporting {ref.name}:{version}") as show:
                record = client.wait_export(record, show, print_message)
        yield client, record


def list_exports(model: Model, json: Json = False) -> None:
    """List the exports of a model or a version."""
    with connect() as client:
        exports = list(_exports(client, parse_model(model)))
    columns = ("id", "version", "state", "quantize", "bytes", "agreement", "runtime", "why", "created (UTC)")
    rows = (
        [
            e["id"],
            e["version"],
            e["state"],
            e["quantize"],
            e["bytes"],
            (e["report"] or {}).get("label_agreement"),
            e["min_runtime"],
            rejection_reason(e) if e["state"] == "rejected" else None,
            format_time(e["created_at"]),
        ]
        for e in exports
    )
    page = {"items": exports, "next_page_token": None}
    print_record(json, page, lambda: print_table(columns, rows, "no exports"))


def show(model: Model, export_id: ExportId, json: Json = False) -> None:
    """Show an export with its report."""
    from registry.errors import NotFound

    ref = parse_model(model)
    with connect() as client:
        record = next((e for e in _exports(client, ref) if e["id"] == export_id), None)
    if record is None:
        raise NotFound("export", f"{ref}/{export_id}")
    print_record(json, record, lambda: echo("\n".join(export_lines(record))))


def _resolve_version(client: Client, ref: ModelRef) -> int:
    """Return the version that `ref` selects; of a plain name, the champion or the latest."""
    from registry.errors import NotFound
    from service.client import path

    if ref.version is not None:
        return ref.version
    record: dict[str, Any] = client.call("GET", path("models", ref.name))
    version = record["aliases"].get(ref.alias or "champion")
    if version is None and ref.alias:
        raise NotFound("alias", ref)
    return int(version or record["latest_version"])


def _exports(client: Client, ref: ModelRef) -> Iterator[Record]:
    """The exports of a version or of all versions, newest first."""
    from service.client import path

    if ref.version is not None or ref.alias:
        versions = [_resolve_version(client, ref)]
    else:
        versions = [v["version"] for v in client.pages(path("models", ref.name, "versions"))["items"]]
    for version in versions:
        yield from client.pages(path("models", ref.name, "versions", version, "exports"))["items"]


def _write_atomically(out: Path, content: bytes) -> None:
    """Write the whole file or nothing: a program may be reading `out`."""
    from registry.artifacts import write_durably

    write_durably(out, content, out.with_name(f"{out.name}.part"))
