"""Exports: a version as a .tflite file. Create one, record its outcome, list the files for devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry import models, queue, revision, versions
from registry.aliases import is_rolling_out, version_outside_rollout
from registry.artifacts import Store
from registry.build_messages import ExportBounds
from registry.errors import NotFound, NotReady
from registry.pages import Page, decode_token, make_page
from registry.signature import Signature
from registry.tables import AliasRow, ExportRow, ModelRow, now
from registry.vocabulary import BUILDING, EXPORT_TASK, READY, REJECTED, Quantize


class NewExport(msgspec.Struct, frozen=True):
    """A requested export."""

    quantize: Quantize = "none"
    calibration: dict[str, Any] | None = None  # {"artifact", "media_type"}
    bounds: ExportBounds = ExportBounds()


class ExportInputs(msgspec.Struct, frozen=True):
    """The exporter's inputs; files are named by their blobs."""

    model: str
    version: int
    format: str
    artifact: str
    signature: Signature
    quantize: Quantize
    bounds: ExportBounds
    example: dict[str, Any] | None
    target: str | None
    calibration: dict[str, Any] | None


class FinishedExport(msgspec.Struct, frozen=True):
    """The outcome of an export, with its files in the blob store."""

    state: str
    report: dict[str, Any]
    blob: str | None = None
    bytes: int | None = None
    zstd: str | None = None
    min_runtime: str | None = None
    measured: str | None = None  # rows, and the file's answers to them
    libraries: str | None = None  # see `versions.libraries_text`


class DeviceFile(msgspec.Struct, frozen=True):
    """A file that an alias provides to its devices. `name` is its TUF target path."""

    name: str
    version: int
    sha256: str
    bytes: int
    min_runtime: str
    percent: int | None = None  # share of devices during a rollout; None: all


def create(session: Session, store: Store, model: str, number: int, new: NewExport, *, by: str) -> ExportRow:
    """Add an export in state `building` and enqueue its task, in the caller's transaction.

    Raises `NotFound`, `NotReady`, `Invalid` (the calibration rows were not uploaded).
    """
    models.lock(session, model)
    version = versions.get(session, model, number)
    if version.state != READY:
        raise NotReady(f"{model}:{number} is {version.state}; only a ready version can be exported")
    if new.calibration is not None:
        versions.lock_blobs(session, shared=True)
        versions.require_blob(store, new.calibration["artifact"], "calibration.artifact")
    row = ExportRow(
        version=version,
        state=BUILDING,
        format="tflite",
        quantize=new.quantize,
        calibration=new.calibration,
        bounds=msgspec.to_builtins(new.bounds),
        created_at=now(),
        created_by=by,
    )
    session.add(row)
    session.flush()
    queue.enqueue(session, EXPORT_TASK, str(row.id), max_attempts=versions.BUILD_ATTEMPTS)
    return row


def inputs(session: Session, export_id: int) -> ExportInputs:
    """Return the exporter's inputs. Raises `NotFound` if the version was deleted meanwhile."""
    row = _by_id(session, export_id)
    version = row.version
    return ExportInputs(
        model=version.model.name,
        version=version.number,
        format=version.format,
        artifact=version.artifact,
        signature=versions.signature_of(version),
        quantize=msgspec.convert(row.quantize, Quantize),
        bounds=msgspec.convert(row.bounds, ExportBounds),
        example=version.example,
        target=version.target,
        calibration=row.calibration,
    )


def finish(session: Session, export_id: int, finished: FinishedExport) -> ExportRow:
    """Record the outcome of an export. Raises `NotFound` if the version was deleted meanwhile."""
    row = _by_id(session, export_id)
    for field in msgspec.structs.fields(finished):
        setattr(row, field.name, getattr(finished, field.name))
    row.finished_at = now()
    revision.record_change(session, "model", row.version.model.name)
    session.flush()
    return row


def reject(session: Session, export_id: int, reason: str) -> ExportRow:
    """Record that the export failed. Raises `NotFound`."""
    return finish(session, export_id, FinishedExport(state=REJECTED, report={"reason": reason}))


def get(session: Session, model: str, number: int, export_id: int) -> ExportRow:
    """Raises `NotFound`."""
    version = versions.get(session, model, number)
    row = session.scalar(
        select(ExportRow).where(ExportRow.id == export_id, ExportRow.version_id == version.id)
    )
    if row is None:
        raise NotFound("export", f"{model}:{number}/{export_id}")
    return row


def search(
    session: Session, model: str, number: int, *, page_size: int = 100, page_token: str | None = None
) -> Page[ExportRow]:
    """Return a page of the version's exports, newest first. Raises `NotFound`."""
    version = versions.get(session, model, number)
    query = select(ExportRow).where(ExportRow.version_id == version.id)
    if (last := decode_token(page_token, int)) is not None:
        query = query.where(ExportRow.id < last)
    rows = session.scalars(query.order_by(ExportRow.id.desc()).limit(page_size + 1)).all()
    return make_page(rows, page_size, lambda e: e.id)


def device_files(session: Session) -> list[DeviceFile]:
    """Return the files that all aliases provide now, by name.

    For each quantize mode that is the newest export of the alias's version. Older exports for older runtimes
    are included as `{quantize}.{min_runtime}.tflite`. During a rollout the plain name is the previous
    version, which devices outside the rollout keep, and `{quantize}.rollout.tflite` is the new one with its
    share.
    """
    files: list[DeviceFile] = []
    for alias, model in session.execute(
        select(AliasRow, ModelRow.name).join(ModelRow, ModelRow.id == AliasRow.model_id)
    ):
        prefix = f"{model}/{alias.name}"
        if not is_rolling_out(alias):
            files += _version_files(session, alias.version_id, alias.version.number, prefix, ".tflite", None)
            continue
        previous = version_outside_rollout(session, alias)
        if previous is not None:
            files += _version_files(session, previous.id, previous.number, prefix, ".tflite", None)
        if alias.edge_percent:
            number, percent = alias.version.number, alias.edge_percent
            files += _version_files(session, alias.version_id, number, prefix, ".rollout.tflite", percent)
    return sorted(files, key=lambda f: f.name)


def _version_files(
    session: Session, version_id: int, number: int, prefix: str, suffix: str, percent: int | None
) -> Sequence[DeviceFile]:
    newest = (
        select(func.max(ExportRow.id))
        .where(ExportRow.version_id == version_id, ExportRow.state == READY)
        .group_by(ExportRow.quantize, ExportRow.min_runtime)
    )
    query = (
        select(ExportRow.quantize, ExportRow.blob, ExportRow.bytes, ExportRow.min_runtime)
        .where(ExportRow.id.in_(newest))
        .order_by(ExportRow.id.desc())
    )
    files: dict[str, DeviceFile] = {}
    for quantize, blob, size, runtime in session.execute(query):
        name = f"{prefix}/{quantize}{suffix}"
        if name in files:  # an older export, for devices whose runtime is too old for the newest
            name = f"{prefix}/{quantize}.{runtime}{suffix}"
        files[name] = DeviceFile(name, number, blob or "", size or 0, runtime or "", percent)
    return list(files.values())


def _by_id(session: Session, export_id: int) -> ExportRow:
    row = session.get(ExportRow, export_id)
    if row is None:
        raise NotFound("export", export_id)
    return row
