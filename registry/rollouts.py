"""What devices report, and rollouts that stop by themselves.

A rollout is a share (`edge_percent`) of an alias's devices that get its version; the others keep the one
before. When too many devices report that the new version failed, the share goes to 0: every device is
sent back, online callers notice nothing, and the alias says why.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from registry import aliases, models, revision
from registry.errors import NotFound
from registry.pages import Page, after, cut
from registry.tables import AliasEventRow, AliasRow, DeviceReportRow, ModelRow, now

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

    Raises `NotFound` when there is no such model, or never was such a version.
    """
    # Locked before the report refers to it: of two that lock it afterwards each waits for the other.
    owner = (models.lock if new.status == "failed" else models.get)(session, model)
    if new.version > owner.last_number:
        raise NotFound("version", f"{model}:{new.version}")
    row = DeviceReportRow(model_id=owner.id, at=now(), **msgspec.structs.asdict(new))
    session.add(row)
    session.flush()
    if new.status == "failed":
        _halt_if_needed(session, owner, new.version, by)
    return row


def counts(session: Session, model: str) -> list[Counts]:
    """For every version that was reported on, newest first. Raises `NotFound`."""
    return _count(session, DeviceReportRow.model_id == models.get(session, model).id)


def _count(session: Session, *which: ColumnElement[bool]) -> list[Counts]:
    newest = (
        select(func.max(DeviceReportRow.id))
        .where(*which)
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


def _halt_if_needed(session: Session, owner: ModelRow, version: int, by: str) -> None:
    for row in session.scalars(select(AliasRow).where(AliasRow.model_id == owner.id)):
        if not (aliases.is_rolling_out(row) and row.edge_percent and row.version.number == version):
            continue
        found = _count(
            session,
            DeviceReportRow.model_id == owner.id,
            DeviceReportRow.version == version,
            DeviceReportRow.at > _began(session, row),
        )
        failed, all_ = found[0].failed, found[0].ok + found[0].failed
        if failed < HALT_DEVICES or failed <= HALT_SHARE * all_:
            continue
        row.edge_percent = 0
        row.edge_halted = f"{failed} of {all_} devices reported that version {version} failed"
        _remember(session, row, by)
        revision.note(session, "model", owner.name)


def _began(session: Session, row: AliasRow) -> datetime:
    """When the rollout began: a version that failed before may be tried again, and is judged anew."""
    halted = session.scalar(
        select(func.max(AliasEventRow.at)).where(
            AliasEventRow.model_id == row.model_id,
            AliasEventRow.alias == row.name,
            AliasEventRow.action == "halt",
        )
    )
    return max(row.event.at, halted or row.event.at)


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
