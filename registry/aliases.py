"""Aliases: the only pointers to versions. `promote` moves an alias; every move is recorded.

The history is a list of events, which only `record_event` adds. Each event refers to the event that it
replaced, and `rollback` follows these references into the past: after promoting 1, 2 and 3, two rollbacks
lead to 2 and then to 1. Each move ends the alias's traffic (`registry/traffic.py`): afterwards the alias's
version answers every call.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from registry import models, revision
from registry.errors import Conflict, NotFound, NotReady
from registry.names import check_name
from registry.pages import Page, decode_token, make_page
from registry.tables import AliasEventRow, AliasRow, AliasTrafficRow, ModelRow, VersionRow, now
from registry.vocabulary import READY, AliasAction

CHAMPION = "champion"
"""The alias that is used if a caller names none."""


def get(session: Session, model: str, alias: str) -> AliasRow:
    """Raises `NotFound`."""
    return _get(session, models.get(session, model), alias)


def promote(
    session: Session,
    model: str,
    alias: str,
    number: int,
    *,
    by: str,
    reason: str | None = None,
    edge_percent: int | None = None,
) -> AliasRow:
    """Point `alias` at version `number`, and end the alias's traffic.

    If it points there already, only a changed rollout or the end of the traffic is recorded; with
    `edge_percent`, only the rollout changes.

    Raises `NotFound`, `NotReady`, `Invalid` (the alias's name), and `Conflict` for a share of the devices if
    all devices get the version already and there is no ready version for the others.
    """
    check_name(alias, "alias")
    owner = models.lock(session, model)
    version = session.scalar(
        select(VersionRow).where(VersionRow.model_id == owner.id, VersionRow.number == number)
    )
    if version is None:
        raise NotFound("version", f"{model}:{number}")
    if version.state != READY:
        raise NotReady(f"{model}:{number} is {version.state}; only a ready version can be {alias}")
    row = session.get(AliasRow, (owner.id, alias), populate_existing=True)  # re-read under the lock
    if row is not None and row.version_id == version.id:
        ended = edge_percent is None and end_traffic(session, row)
        if (row.edge_percent, row.edge_halted) != (edge_percent, None):
            if not is_rolling_out(row) and is_partial(edge_percent):
                _require_version_outside_rollout(session, owner, row)
            row.edge_percent, row.edge_halted = edge_percent, None
            share = "all" if edge_percent is None else f"{edge_percent} %"
            note = reason or f"for {share} of the devices"
            record_event(session, owner.id, alias, number, "rollout", by, note, None)  # not a move
            revision.record_change(session, "model", model)
        elif ended:
            record_event(session, owner.id, alias, number, "traffic", by, reason, None)
            revision.record_change(session, "model", model)
        return row
    event = record_event(session, owner.id, alias, version.number, "promote", by, reason, row)
    return _point(session, owner, row, version, event, edge_percent)


def rollback(session: Session, model: str, alias: str, *, by: str, reason: str | None = None) -> AliasRow:
    """Point `alias` back at the previous version. Raises `NotFound`, `Conflict` for the first version."""
    owner = models.lock(session, model)
    row = _get(session, owner, alias)
    target = rollback_target(session, row)
    if target is None:
        raise Conflict(f"{model}@{alias} has no earlier version to roll back to; promote a version instead")
    earlier, version = target
    event = record_event(session, owner.id, alias, version.number, "rollback", by, reason, None)
    event.previous_id = earlier.previous_id  # the next rollback continues from there
    _point(session, owner, row, version, event, None)
    row.edge_previous = None  # devices must not get the version that was taken back
    return row


def rollback_target(session: Session, row: AliasRow) -> tuple[AliasEventRow, VersionRow] | None:
    """Return the event and version a rollback goes to now: the latest earlier version that is ready."""
    previous_id = row.event.previous_id
    while previous_id is not None:
        event = session.get_one(AliasEventRow, previous_id)
        version = session.scalar(
            select(VersionRow).where(VersionRow.model_id == row.model_id, VersionRow.number == event.version)
        )
        if version is not None and version.state == READY and version.id != row.version_id:
            return event, version
        previous_id = event.previous_id
    return None


def is_rolling_out(row: AliasRow) -> bool:
    """Report whether some devices do not get the alias's version. True also for a halted rollout."""
    return is_partial(row.edge_percent)


def is_partial(edge_percent: int | None) -> bool:
    return edge_percent is not None and edge_percent < 100


def version_outside_rollout(session: Session, row: AliasRow) -> VersionRow | None:
    """Return the version for devices outside the rollout: the last one that was meant for all devices.

    It may differ from the rollback target: a version whose rollout never reached all devices, or was halted,
    was never installed on the devices outside of it.
    """
    return session.scalar(
        select(VersionRow).where(VersionRow.model_id == row.model_id, VersionRow.number == row.edge_previous)
    )


def _require_version_outside_rollout(session: Session, owner: ModelRow, row: AliasRow) -> None:
    name = f"{owner.name}:{row.version.number}"
    other = version_outside_rollout(session, row)
    if other is None or other.state != READY:
        raise Conflict(
            f"all devices get {name} already, and there is no earlier version for a part of them; "
            "leave out edge_percent, or promote another version"
        )


def remove(session: Session, model: str, alias: str, *, by: str) -> None:
    """Delete the alias. Its history stays. Raises `NotFound`."""
    owner = models.lock(session, model)
    row = _get(session, owner, alias)
    end_traffic(session, row)
    record_event(session, owner.id, alias, None, "delete", by, None, None)
    session.delete(row)
    revision.record_change(session, "model", model)


def history(
    session: Session, model: str, alias: str, *, page_size: int = 100, page_token: str | None = None
) -> Page[AliasEventRow]:
    """Return a page of the alias's events, newest first. Raises `NotFound` if it never existed."""
    query = _events(models.get(session, model), alias).limit(page_size + 1)
    if (last := decode_token(page_token, int)) is not None:
        query = query.where(AliasEventRow.id < last)
    events = list(session.scalars(query))
    if not events and page_token is None:
        raise NotFound("alias", f"{model}@{alias}")
    return make_page(events, page_size, lambda e: e.id)


def event_at(session: Session, model: str, alias: str, moment: datetime) -> AliasEventRow:
    """Return the event in force at `moment`. Raises `NotFound` if the alias pointed to no version then."""
    query = _events(models.get(session, model), alias).where(AliasEventRow.at <= moment).limit(1)
    event = session.scalar(query)
    if event is None or event.version is None:
        raise NotFound("alias", f"{model}@{alias}", f"it pointed to no version at {moment.isoformat()}")
    return event


def _events(owner: ModelRow, alias: str) -> Select[AliasEventRow]:
    return (
        select(AliasEventRow)
        .where(AliasEventRow.model_id == owner.id, AliasEventRow.alias == alias)
        .order_by(AliasEventRow.id.desc())
    )


def _get(session: Session, owner: ModelRow, alias: str) -> AliasRow:
    row = session.get(AliasRow, (owner.id, alias), populate_existing=True)
    if row is None:
        names = session.scalars(select(AliasRow.name).where(AliasRow.model_id == owner.id))
        raise alias_not_found(owner.name, alias, names)
    return row


def alias_not_found(model: str, alias: str, existing: Iterable[str]) -> NotFound:
    """Build the error; it lists the `existing` aliases, or explains how to create one."""
    names = ", ".join(sorted(existing))
    hint = f"aliases are: {names}" if names else f"promote a version: PUT /v1/models/{model}/aliases/{alias}"
    return NotFound("alias", f"{model}@{alias}", hint)


def record_event(
    session: Session,
    model_id: int,
    alias: str,
    number: int | None,
    action: AliasAction,
    by: str,
    reason: str | None,
    replaced: AliasRow | None,
    traffic: dict[str, Any] | None = None,
) -> AliasEventRow:
    """Add an event to the history of an alias, in the transaction that changes the alias.

    `action` is promote, rollback, delete, rollout (another share of the devices), halt or traffic; `traffic`
    is the split that it sets, and events of rollouts repeat the one in force. A webhook on moves begins here:
    for the actions it reports, insert a task in the same transaction. It also needs a task kind in
    `registry/vocabulary.py`, and a thread that claims tasks of that kind.
    """
    if action in ("rollout", "halt"):
        traffic = _current_traffic(session, model_id, alias)
    event = AliasEventRow(
        model_id=model_id,
        alias=alias,
        version=number,
        action=action,
        at=now(),
        by=by,
        reason=reason,
        previous_id=replaced.event_id if replaced else None,
        traffic=traffic,
    )
    session.add(event)
    session.flush()
    return event


def _current_traffic(session: Session, model_id: int, alias: str) -> dict[str, Any] | None:
    query = select(AliasEventRow.traffic).join(AliasTrafficRow, AliasTrafficRow.event_id == AliasEventRow.id)
    return session.scalar(query.where(AliasTrafficRow.model_id == model_id, AliasTrafficRow.alias == alias))


def end_traffic(session: Session, row: AliasRow) -> bool:
    """Delete the traffic of an alias. Return whether there was any."""
    traffic = session.get(AliasTrafficRow, (row.model_id, row.name), populate_existing=True)
    if traffic is None:
        return False
    session.delete(traffic)
    session.flush()
    return True


def _point(
    session: Session,
    owner: ModelRow,
    row: AliasRow | None,
    version: VersionRow,
    event: AliasEventRow,
    edge_percent: int | None,
) -> AliasRow:
    if row is None:
        row = AliasRow(model_id=owner.id, name=event.alias)
        session.add(row)
    else:
        end_traffic(session, row)
        if not is_rolling_out(row):
            row.edge_previous = row.version.number
    row.version, row.event = version, event
    row.edge_percent, row.edge_halted = edge_percent, None
    revision.record_change(session, "model", owner.name)
    session.flush()
    return row
