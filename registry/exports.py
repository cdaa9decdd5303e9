"""Exports: a version as a .tflite file. Ask for one, record what came of it, find the one a device gets."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import models, queue, revision, versions
from registry.artifacts import Store
from registry.build_records import Bounds
from registry.errors import NotFound, NotReady
from registry.pages import Page, after, cut
from registry.signature import Signature
from registry.tables import ExportRow, now
from registry.vocabulary import EXPORT_TASK, Quantize


class NewExport(msgspec.Struct, frozen=True):
    """What is asked for."""

    quantize: Quantize = "none"
    calibration: dict[str, Any] | None = None  # {"artifact", "media_type"}
    bounds: Bounds = Bounds()


class ExportInputs(msgspec.Struct, frozen=True):
    """What the exporter needs to know, by blob."""

    model: str
    version: int
    format: str
    artifact: str
    signature: Signature
    quantize: Quantize
    bounds: Bounds
    example: dict[str, Any] | None
    target: str | None
    calibration: dict[str, Any] | None


class Finished(msgspec.Struct, frozen=True):
    """What the exporter made, its files in the store by now."""

    state: str
    report: dict[str, Any]
    blob: str | None = None
    bytes: int | None = None
    zstd: str | None = None
    min_runtime: str | None = None


def create(session: Session, store: Store, model: str, number: int, new: NewExport, *, by: str) -> ExportRow:
    """Record an export in state `building` and enqueue it, in the caller's transaction.

    Raises `NotFound`, `NotReady`, `Invalid` (calibration rows that were not uploaded).
    """
    models.lock(session, model)
    version = versions.get(session, model, number)
    if version.state != versions.READY:
        raise NotReady(f"{model}:{number} is {version.state}; only a ready version can be exported")
    if new.calibration is not None:
        versions.hold_blobs(session, shared=True)
        versions.require_blob(store, new.calibration["artifact"], "calibration.artifact")
    row = ExportRow(
        version=version,
        state=versions.BUILDING,
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
    """Raises `NotFound` when the export was deleted with its version meanwhile."""
    row = _by_id(session, export_id)
    version = row.version
    return ExportInputs(
        model=version.model.name,
        version=version.number,
        format=version.format,
        artifact=version.artifact,
        signature=versions.signature_of(version),
        quantize=msgspec.convert(row.quantize, Quantize),
        bounds=msgspec.convert(row.bounds, Bounds),
        example=version.example,
        target=version.target,
        calibration=row.calibration,
    )


def finish(session: Session, export_id: int, done: Finished) -> ExportRow:
    """Record what the exporter made. Raises `NotFound` when it was deleted meanwhile."""
    row = _by_id(session, export_id)
    for field in msgspec.structs.fields(done):
        setattr(row, field.name, getattr(done, field.name))
    row.finished_at = now()
    revision.note(session, "model", row.version.model.name)
    session.flush()
    return row


def reject(session: Session, export_id: int, reason: str) -> ExportRow:
    """End an export that cannot be finished. Raises `NotFound`."""
    return finish(session, export_id, Finished(state=versions.REJECTED, report={"reason": reason}))


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
    """The version's exports, newest first. Raises `NotFound`."""
    version = versions.get(session, model, number)
    query = select(ExportRow).where(ExportRow.version_id == version.id)
    if (last := after(page_token, int)) is not None:
        query = query.where(ExportRow.id < last)
    rows = session.scalars(query.order_by(ExportRow.id.desc()).limit(page_size + 1)).all()
    return cut(rows, page_size, lambda e: e.id)


def _by_id(session: Session, export_id: int) -> ExportRow:
    row = session.get(ExportRow, export_id)
    if row is None:
        raise NotFound("export", export_id)
    return row
