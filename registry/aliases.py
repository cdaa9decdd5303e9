"""Aliases: the only pointers to versions. Moving one is `promote`; every move is kept.

The history is a list of events. Each event remembers the event it replaced, so that rolling back walks
towards the past: after promoting 1, 2, 3, two rollbacks lead to 2 and then to 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from registry import models, revision
from registry.errors import Conflict, NotFound, NotReady
from registry.names import check_name
from registry.pages import Page, after, cut
from registry.tables import AliasEventRow, AliasRow, ModelRow, VersionRow, now

CHAMPION = "champion"
"""The alias that answers when a caller names none."""


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
    """Point `alias` at version `number`. Pointing it where it points already is no move.

    Raises `NotFound`, `NotReady`, `Invalid` (the alias's name).
    """
    check_name(alias, "alias")
    owner = models.lock(session, model)
    version = session.scalar(
        select(VersionRow).where(VersionRow.model_id == owner.id, VersionRow.number == number)
    )
    if version is None:
        raise NotFound("version", f"{model}:{number}")
    if version.state != "ready":
        raise NotReady(f"{model}:{number} is {version.state}; only a ready version can be {alias}")
    row = session.get(AliasRow, (owner.id, alias), populate_existing=True)  # as of the lock, not before
    if row is not None and row.version_id == version.id:
        if (row.edge_percent, row.edge_halted) != (edge_percent, None):
            row.edge_percent, row.edge_halted = edge_percent, None
            share = "all" if edge_percent is None else f"{edge_percent} %"
            said = reason or f"for {share} of the devices"
            _event(session, owner, alias, number, "rollout", by, said, None)  # a line, no move
            revision.note(session, "model", model)
        return row
    event = _event(session, owner, alias, version.number, "promote", by, reason, row)
    return _point(session, owner, row, version, event, edge_percent)


def rollback(session: Session, model: str, alias: str, *, by: str, reason: str | None = None) -> AliasRow:
    """Point `alias` back at the version before. Raises `NotFound`, `Conflict` when there is none."""
    owner = models.lock(session, model)
    row = _get(session, owner, alias)
    found = rollback_target(session, row)
    if found is None:
        raise Conflict(f"{model}@{alias} has no earlier version to go back to; promote one instead")
    earlier, version = found
    event = _event(session, owner, alias, version.number, "rollback", by, reason, None)
    event.previous_id = earlier.previous_id  # the next rollback goes on from there
    return _point(session, owner, row, version, event, None)


def rollback_target(session: Session, row: AliasRow) -> tuple[AliasEventRow, VersionRow] | None:
    """Where a rollback of this alias goes now: the nearest earlier version that can still serve."""
    previous_id = row.event.previous_id
    while previous_id is not None:
        event = session.get_one(AliasEventRow, previous_id)
        version = session.scalar(
            select(VersionRow).where(VersionRow.model_id == row.model_id, VersionRow.number == event.version)
        )
        if version is not None and version.state == "ready" and version.id != row.version_id:
            return event, version
        previous_id = event.previous_id
    return None


def is_rolling_out(row: AliasRow) -> bool:
    """Whether some devices do not get its version; also when none does, since the rollout was stopped."""
    return row.edge_percent is not None and row.edge_percent < 100


def for_the_others(session: Session, row: AliasRow) -> VersionRow | None:
    """What devices get that are not in the rollout: the last version that was meant for all of them.

    That need not be where a rollback goes: of a version that was only ever rolled out to some, or stopped,
    they have never heard.
    """
    return session.scalar(
        select(VersionRow).where(VersionRow.model_id == row.model_id, VersionRow.number == row.edge_previous)
    )


def remove(session: Session, model: str, alias: str, *, by: str) -> None:
    """Delete the alias; its history stays. Raises `NotFound`."""
    owner = models.lock(session, model)
    row = _get(session, owner, alias)
    _event(session, owner, alias, None, "delete", by, None, None)
    session.delete(row)
    revision.note(session, "model", model)


def history(
    session: Session, model: str, alias: str, *, page_size: int = 100, page_token: str | None = None
) -> Page[AliasEventRow]:
    """Every move, newest first. Raises `NotFound` when the alias never existed."""
    query = _events(models.get(session, model), alias).limit(page_size + 1)
    if (last := after(page_token, int)) is not None:
        query = query.where(AliasEventRow.id < last)
    events = list(session.scalars(query))
    if not events and page_token is None:
        raise NotFound("alias", f"{model}@{alias}")
    return cut(events, page_size, lambda e: e.id)


def at(session: Session, model: str, alias: str, moment: datetime) -> AliasEventRow:
    """The move in force at `moment`. Raises `NotFound` when the alias pointed nowhere then."""
    query = _events(models.get(session, model), alias).where(AliasEventRow.at <= moment).limit(1)
    event = session.scalar(query)
    if event is None or event.version is None:
        raise NotFound("alias", f"{model}@{alias}", f"it pointed nowhere at {moment.isoformat()}")
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
        there = session.scalars(select(AliasRow.name).where(AliasRow.model_id == owner.id))
        raise no_alias(owner.name, alias, there)
    return row


def no_alias(model: str, alias: str, there: Iterable[str]) -> NotFound:
    """Names those that are `there`; of a model that has none, how to make one."""
    known = ", ".join(sorted(there))
    hint = f"there is {known}" if known else f"promote a version: PUT /v1/models/{model}/aliases/{alias}"
    return NotFound("alias", f"{model}@{alias}", hint)


def _event(
    session: Session,
    owner: ModelRow,
    alias: str,
    number: int | None,
    action: str,
    by: str,
    reason: str | None,
    replaced: AliasRow | None,
) -> AliasEventRow:
    event = AliasEventRow(
        model_id=owner.id,
        alias=alias,
        version=number,
        action=action,
        at=now(),
        by=by,
        reason=reason,
        previous_id=replaced.event_id if replaced else None,
    )
    session.add(event)
    session.flush()
    return event


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
    elif not is_rolling_out(row):
        row.edge_previous = row.version.number
    row.version, row.event = version, event
    row.edge_percent, row.edge_halted = edge_percent, None
    revision.note(session, "model", owner.name)
    session.flush()
    return row
