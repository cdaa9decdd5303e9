"""Collect the blobs that no version, export, job and schedule refers to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.artifacts import Store
from registry.jobs.tables import JobRow, ScheduleRow
from registry.tables import ExportRow, VersionRow
from registry.versions import hold_blobs

GRACE_S = 24 * 3600.0
"""An upload has this long to be published before it counts as garbage."""


class Collected(msgspec.Struct, frozen=True):
    """What a collection removed, or would remove."""

    blobs: list[str]
    bytes: int
    kept: int
    interrupted_uploads: int
    dry_run: bool


def collect(session: Session, store: Store, *, grace_s: float = GRACE_S, dry_run: bool = False) -> Collected:
    """Delete orphan blobs that were last put more than `grace_s` seconds ago.

    Runs inside a write transaction, so that nobody publishes a blob between the look and the deletion. Blobs
    are listed before it begins: that may take long, and what is put meanwhile is younger than it looks.
    """
    found = list(store)
    hold_blobs(session, shared=False)
    used = _used(session)
    orphans = [b for b in found if b.sha256 not in used and b.age_s > grace_s]
    if not dry_run:
        orphans = [b for b in orphans if store.expire(b.sha256, grace_s)]
    return Collected(
        blobs=sorted(b.sha256 for b in orphans),
        bytes=sum(b.bytes for b in orphans),
        kept=len(found) - len(orphans),
        interrupted_uploads=0 if dry_run else store.sweep(grace_s),
        dry_run=dry_run,
    )


def _used(session: Session) -> set[str | None]:
    used: set[str | None] = set()
    for artifact, servable, forest, example in session.execute(
        select(VersionRow.artifact, VersionRow.servable, VersionRow.forest, VersionRow.example)
    ):
        used.update((artifact, servable, forest, (example or {}).get("artifact")))
    for blob, zstd, calibration in session.execute(
        select(ExportRow.blob, ExportRow.zstd, ExportRow.calibration)
    ):
        used.update((blob, zstd, (calibration or {}).get("artifact")))
    for output, errors, spec in session.execute(select(JobRow.output, JobRow.errors, JobRow.spec)):
        used.update((output, errors, *_needed(spec)))
    for spec in session.scalars(select(ScheduleRow.job)):
        used.update(_needed(spec))
    return used


def _needed(spec: dict[str, Any]) -> Iterator[str | None]:
    """The artifacts that a job reads, or the one that follows it: they may be wanted again by `resume`."""
    for part in ("input", "estimator"):
        yield (spec.get(part) or {}).get("artifact")
    if spec.get("then"):
        yield from _needed(spec["then"])
