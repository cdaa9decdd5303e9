"""Exports: a version as a .tflite file. Ask for one, list them, read the report of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option, echo

from service.cli.publish import MEDIA_TYPES, by_suffix, waiting
from service.cli.record_lines import export_lines, why_rejected
from service.cli.shared import Json, Model, connect, emit, model_ref, say, table, when
from service.cli.transfer import upload

if TYPE_CHECKING:
    from service.client import Client, ModelRef, Record

Calibration = Annotated[
    Path | None,
    Option(
        exists=True,
        dir_okay=False,
        help="Rows for int8: .csv, .parquet or .json. Else the version's example.",
    ),
]
MaxDisagreement = Annotated[
    float | None, Option(help="Share of rows that may get another label; of numbers, the relative error.")
]
MaxAccuracyDrop = Annotated[
    float | None, Option(help="What the accuracy on the example's true values may lose.")
]
MaxBytes = Annotated[
    int | None, Option(help="Largest file; a forest gives up trees and leaves to get there.")
]


def export(
    model: Model,
    quantize: Annotated[str, Option(help="none, float16, dynamic or int8.")] = "none",
    calibration: Calibration = None,
    max_disagreement: MaxDisagreement = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
    max_bytes: MaxBytes = None,
    out: Annotated[Path | None, Option(dir_okay=False, help="Write the file here.")] = None,
    json: Json = False,
) -> None:
    """Write a version as .tflite, and wait until it is compared with the model.

    A plain name is its champion, or its latest version when there is none. Exit code 1, and the reason, when
    the export does not answer as the model does.
    """
    asked: Record = {
        "format": "tflite",
        "quantize": quantize,
        "max_disagreement": max_disagreement,
        "max_accuracy_drop": max_accuracy_drop,
        "max_bytes": max_bytes,
    }
    with _exported(model_ref(model), calibration, asked) as (client, record):
        lines = "\n".join(export_lines(record))
        if record["state"] != "ready":
            emit(json, record, lambda: None)
            say(lines)
            raise Exit(1)
        if out is not None:
            _write(out, client.download(record["sha256"]))
    emit(json, record, lambda: echo(lines))
    if out is not None:
        say(f"written to {out}")


@contextmanager
def _exported(ref: ModelRef, calibration: Path | None, asked: Record) -> Iterator[tuple[Client, Record]]:
    """The export once it is compared with the model, and the client to fetch its file with."""
    media_type = (
        by_suffix(calibration, MEDIA_TYPES, "rows; use .csv, .parquet or .json") if calibration else None
    )
    with connect() as client:
        version = _version(client, ref)
        if calibration:
            asked["calibration"] = {"artifact": upload(client, calibration), "media_type": media_type}
        record = client.export(ref.name, version, {k: v for k, v in asked.items() if v is not None})
        if record["state"] == "building":
            with waiting(f"exporting {ref.name}:{version}") as on_state:
                record = client.wait_export(record, on_state, say)
        yield client, record


def list_exports(
    model: Annotated[str, Argument(metavar="MODEL", help="name, name@alias or name:version.")],
    json: Json = False,
) -> None:
    """List the exports of a version, or of all versions of a model."""
    with connect() as client:
        found = list(_exports(client, model_ref(model)))
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
            why_rejected(e) if e["state"] == "rejected" else None,
            when(e["created_at"]),
        ]
        for e in found
    )
    page = {"items": found, "next_page_token": None}
    emit(json, page, lambda: table(columns, rows, "no exports"))


def show(
    model: Annotated[str, Argument(metavar="MODEL", help="name, name@alias or name:version.")],
    export_id: Annotated[int, Argument(metavar="ID", help="The export's id, from `trivium exports MODEL`.")],
    json: Json = False,
) -> None:
    """Show an export with its report: how faithful, how large, how fast."""
    from registry.errors import NotFound

    ref = model_ref(model)
    with connect() as client:
        record = next((e for e in _exports(client, ref) if e["id"] == export_id), None)
    if record is None:
        raise NotFound("export", f"{ref}/{export_id}")
    emit(json, record, lambda: echo("\n".join(export_lines(record))))


def _version(client: Client, ref: ModelRef) -> int:
    """The version that is meant."""
    from registry.errors import NotFound
    from service.client import path

    if ref.version is not None:
        return ref.version
    record: dict[str, Any] = client.call("GET", path("models", ref.name))
    found = record["aliases"].get(ref.alias or "champion")
    if found is None and ref.alias:
        raise NotFound("alias", ref)
    return int(found or record["latest_version"])


def _exports(client: Client, ref: ModelRef) -> Iterator[Record]:
    """Newest first."""
    from service.client import path

    if ref.version is not None or ref.alias:
        versions = [_version(client, ref)]
    else:
        versions = [v["version"] for v in client.pages(path("models", ref.name, "versions"))["items"]]
    for version in versions:
        yield from client.pages(path("models", ref.name, "versions", version, "exports"))["items"]


def _write(out: Path, content: bytes) -> None:
    """Whole or not at all: a device may be watching the file."""
    partial = out.with_name(f"{out.name}.part")
    partial.write_bytes(content)
    partial.replace(out)
