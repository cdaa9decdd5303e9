"""Garbage collection of blobs that no version, export, job or schedule refers to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.artifacts import Store
from registry.jobs.tables import JobRow, ScheduleRow
from registry.tables import ExportRow, VersionRow
from registry.versions import lock_blobs

GRACE_S = 24 * 3600.0
"""An upload that is not published within this time is garbage."""


class GarbageReport(msgspec.Struct, frozen=True):
    """The blobs that a collection deleted, or would delete."""

    blobs: list[str]
    bytes: int
    kept: int
    interrupted_uploads: int
    dry_run: bool


def collect(
    session: Session, store: Store, *, grace_s: float = GRACE_S, dry_run: bool = False
) -> GarbageReport:
    """Delete unreferenced blobs that were last put more than `grace_s` seconds ago.

    Must run in a write transaction, so that no blob is published between the query and the deletion. Blobs
    are listed before the transaction takes its lock, because that may take long; the age of a blob that is
    put meanwhile is read again before its deletion.
    """
    blobs = list(store)
    lock_blobs(session, shared=False)
    referenced = _referenced_blobs(session)
    orphans = [b for b in blobs if b.sha256 not in referenced and b.age_s > grace_s]
    if not dry_run:
        orphans = [b for b in orphans if store.delete_if_older(b.sha256, grace_s)]
    return GarbageReport(
        blobs=sorted(b.sha256 for b in orphans),
        bytes=sum(b.bytes for b in orphans),
        kept=len(blobs) - len(orphans),
        interrupted_uploads=0 if dry_run else store.sweep(grace_s),
        dry_run=dry_run,
    )


def _referenced_blobs(session: Session) -> set[str | None]:
    blobs: set[str | None] = set()
    for artifact, servable, forest, measured, *tables in session.execute(
        select(
            VersionRow.artifact,
            VersionRow.servable,
            VersionRow.forest,
            VersionRow.measured,
            VersionRow.example,
            VersionRow.answers,
        )
    ):
        blobs.update((artifact, servable, forest, measured))
        blobs.update(table["artifact"] for table in tables if table)
    for blob, zstd, measured, calibration in session.execute(
        select(ExportRow.blob, ExportRow.zstd, ExportRow.measured, ExportRow.calibration)
    ):
        blobs.update((blob, zstd, measured, (calibration or {}).get("artifact")))
    for output, errors, spec in session.execute(select(JobRow.output, JobRow.errors, JobRow.spec)):
        blobs.update((output, errors, *_artifacts(spec)))
    for spec in session.scalars(select(ScheduleRow.job)):
        blobs.update(_artifacts(spec))
    return blobs


def _artifacts(spec: Any) -> Iterator[str]:
    """Yield each `{"artifact": sha256}` of a job's spec, at any depth. `resume` may read them again.

    A job kind may add fields, so their names are not listed here.
    """
    values: Iterable[Any] = ()
    if isinstance(spec, dict):
        if isinstance(artifact := spec.get("artifact"), str):
            yield artifact
        values = spec.values()
    elif isinstance(spec, list):
        values = spec
    for value in values:
        yield from _artifacts(value)
