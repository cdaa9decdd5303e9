"""What devices report, and rollouts that stop by themselves.

A rollout is a share (`edge_percent`) of an alias's devices that get its version; the others keep the one
before. When too many devices report that the new version failed, the share goes to 0: every device is
sent back, online callers notice nothing, and the alias says why.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry import changes, models
from registry.pages import Page, after, cut
from registry.tables import AliasEventRow, AliasRow, DeviceReportRow, now

Status = Literal["ok", "failed"]

HALT_DEVICES = 3
"""So many devices must have failed before a rollout is stopped: one broken device is no evidence."""
HALT_SHARE = 0.1
"""And they must be more than this share of the devices that reported."""


class NewReport(msgspec.Struct, frozen=True):
    device: str
    version: int
    status: Status
    latency_ms: float | None = None
    message: str | None = None


class Counts(msgspec.Struct, frozen=True):
    """Devices by the newest word of each about one version."""

    version: int
    ok: int
    failed: int


def report(session: Session, model: str, new: NewReport, *, by: str) -> DeviceReportRow:
    """Keep a device's report; stop the rollouts of its version when failures pass the bound.

    Raises `NotFound`.
    """
    owner = models.get(session, model)
    row = DeviceReportRow(model_id=owner.id, at=now(), **msgspec.structs.asdict(new))
    session.add(row)
    session.flush()
    if new.status == "failed":
        _halt_if_needed(session, model, new.version, by)
    return row


def counts(session: Session, model: str) -> list[Counts]:
    """For every version that was reported on, newest first. Raises `NotFound`."""
    owner = models.get(session, model)
    newest = (
        select(func.max(DeviceReportRow.id))
        .where(DeviceReportRow.model_id == owner.id)
        .group_by(DeviceReportRow.version, DeviceReportRow.device)
    )
    query = (
        select(DeviceReportRow.version, DeviceReportRow.status, func.count())
        .where(DeviceReportRow.id.in_(newest))
        .group_by(DeviceReportRow.version, DeviceReportRow.status)
    )
    found: dict[int, dict[str, int]] = {}
    for version, status, count in session.execute(query):
        found.setdefault(version, {})[status] = count
    return [
        Counts(version, by_status.get("ok", 0), by_status.get("failed", 0))
        for version, by_status in sorted(found.items(), reverse=True)
    ]


def search(
    session: Session, model: str, *, page_size: int = 100, page_token: str | None = None
) -> Page[DeviceReportRow]:
    """Every report, newest first. Raises `NotFound`."""
    owner = models.get(session, model)
    query = select(DeviceReportRow).where(DeviceReportRow.model_id == owner.id)
    if (last := after(page_token, int)) is not None:
        query = query.where(DeviceReportRow.id < last)
    rows = session.scalars(query.order_by(DeviceReportRow.id.desc()).limit(page_size + 1)).all()
    return cut(rows, page_size, lambda r: r.id)


def _halt_if_needed(session: Session, model: str, version: int, by: str) -> None:
    owner = models.lock(session, model)
    found = next((c for c in counts(session, model) if c.version == version), None)
    if found is None or found.failed < HALT_DEVICES:
        return
    if found.failed <= HALT_SHARE * (found.ok + found.failed):
        return
    for row in session.scalars(select(AliasRow).where(AliasRow.model_id == owner.id)):
        rolling = row.edge_percent is not None and 0 < row.edge_percent < 100
        if rolling and row.version.number == version:
            row.edge_percent = 0
            row.edge_halted = (
                f"{found.failed} of {found.ok + found.failed} devices reported that version {version} failed"
            )
            _remember(session, row, by)
            changes.note(session, "model", model)


def _remember(session: Session, row: AliasRow, by: str) -> None:
    """A line in the history. The alias did not move, so a rollback passes it by."""
    session.add(
        AliasEventRow(
            model_id=row.model_id,
            alias=row.name,
            version=row.version.number,
            action="halt",
            at=now(),
            by=by,
            reason=row.edge_halted,
        )
    )
