"""Device reports, and rollouts that halt after failures.

During a rollout, a share (`edge_percent`) of an alias's devices gets its version; the others keep the
previous one. If too many devices report that the new version failed, the share is set to 0: all devices get
the previous version, online predictions are not affected, and the alias stores the reason.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from registry import aliases, models, revision
from registry.errors import NotFound
from registry.pages import Page, decode_token, make_page
from registry.tables import AliasEventRow, AliasRow, DeviceReportRow, ModelRow, now

DeviceStatus = Literal["ok", "failed"]

HALT_DEVICES = 3
"""A rollout is halted after failures of at least this many devices: a single broken device proves nothing."""
HALT_SHARE = 0.1
"""The failed devices must also exceed this share of the devices that reported."""


class NewDeviceReport(msgspec.Struct, frozen=True):
    device: str
    version: int
    status: DeviceStatus
    latency_ms: float | None = None
    message: str | None = None


class DeviceCounts(msgspec.Struct, frozen=True):
    """Number of devices by the newest report of each about one version."""

    version: int
    ok: int
    failed: int


def report(session: Session, model: str, new: NewDeviceReport, *, by: str) -> DeviceReportRow:
    """Store a device's report, and halt the rollouts of its version if there are too many failures.

    Raises `NotFound` if the model does not exist, or the version was never published.
    """
    # Lock the model before inserting the report, which refers to it: if two transactions did it the other way
    # round, each would wait for the other.
    owner = (models.lock if new.status == "failed" else models.get)(session, model)
    if new.version > owner.last_number:
        raise NotFound("version", f"{model}:{new.version}")
    row = DeviceReportRow(model_id=owner.id, at=now(), **msgspec.structs.asdict(new))
    session.add(row)
    session.flush()
    if new.status == "failed":
        _halt_if_needed(session, owner, new.version, by)
    return row


def counts(session: Session, model: str) -> list[DeviceCounts]:
    """Return the counts of every version with reports, newest first. Raises `NotFound`."""
    return _count(session, DeviceReportRow.model_id == models.get(session, model).id)


def _count(session: Session, *conditions: ColumnElement[bool]) -> list[DeviceCounts]:
    newest = (
        select(func.max(DeviceReportRow.id))
        .where(*conditions)
        .group_by(DeviceReportRow.version, DeviceReportRow.device)
    )
    query = (
        select(DeviceReportRow.version, DeviceReportRow.status, func.count())
        .where(DeviceReportRow.id.in_(newest))
        .group_by(DeviceReportRow.version, DeviceReportRow.status)
    )
    by_version: dict[int, dict[str, int]] = {}
    for version, status, count in session.execute(query):
        by_version.setdefault(version, {})[status] = count
    return [
        DeviceCounts(version, by_status.get("ok", 0), by_status.get("failed", 0))
        for version, by_status in sorted(by_version.items(), reverse=True)
    ]


def search(
    session: Session, model: str, *, page_size: int = 100, page_token: str | None = None
) -> Page[DeviceReportRow]:
    """Return a page of the model's reports, newest first. Raises `NotFound`."""
    owner = models.get(session, model)
    query = select(DeviceReportRow).where(DeviceReportRow.model_id == owner.id)
    if (last := decode_token(page_token, int)) is not None:
        query = query.where(DeviceReportRow.id < last)
    rows = session.scalars(query.order_by(DeviceReportRow.id.desc()).limit(page_size + 1)).all()
    return make_page(rows, page_size, lambda r: r.id)


def _halt_if_needed(session: Session, owner: ModelRow, version: int, by: str) -> None:
    for row in session.scalars(select(AliasRow).where(AliasRow.model_id == owner.id)):
        if not (aliases.is_rolling_out(row) and row.edge_percent and row.version.number == version):
            continue
        (count,) = _count(
            session,
            DeviceReportRow.model_id == owner.id,
            DeviceReportRow.version == version,
            DeviceReportRow.at > _rollout_start(session, row),
        )
        devices = count.ok + count.failed
        if count.failed < HALT_DEVICES or count.failed <= HALT_SHARE * devices:
            continue
        row.edge_percent = 0
        row.edge_halted = f"{count.failed} of {devices} devices reported that version {version} failed"
        _record_halt(session, row, by)
        revision.record_change(session, "model", owner.name)


def _rollout_start(session: Session, row: AliasRow) -> datetime:
    """Return when the rollout began. Failures before it do not count, so a version can be tried again."""
    halted = session.scalar(
        select(func.max(AliasEventRow.at)).where(
            AliasEventRow.model_id == row.model_id,
            AliasEventRow.alias == row.name,
            AliasEventRow.action == "halt",
        )
    )
    return max(row.event.at, halted or row.event.at)


def _record_halt(session: Session, row: AliasRow, by: str) -> None:
    """Add the halt to the history. The alias did not move, so rollbacks ignore this event."""
    aliases.record_event(
        session, row.model_id, row.name, row.version.number, "halt", by, row.edge_halted, None
    )
