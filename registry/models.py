"""Models: a name that versions are published under."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from typing import NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Select, delete, exists, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from registry import queue, revision
from registry.errors import InUse, NotFound
from registry.jobs.tables import JobRow
from registry.names import check_name
from registry.pages import Page, after, cut
from registry.tables import AliasEventRow, AliasRow, DeviceReportRow, ModelRow, TagRow, VersionRow

T = TypeVar("T")


class Summary(NamedTuple):
    """A model and what its list entry shows."""

    model: ModelRow
    versions: int
    latest: int | None  # the highest version number there is
    aliases: dict[str, int]  # alias -> version number


def get(session: Session, name: str) -> ModelRow:
    """Raises `NotFound`."""
    model = session.scalar(select(ModelRow).where(ModelRow.name == name))
    if model is None:
        raise no_model(name)
    return model


def lock(session: Session, name: str) -> ModelRow:
    """The model, with every other writer of it waiting until this transaction ends. Raises `NotFound`."""
    model = session.scalar(
        select(ModelRow)
        .where(ModelRow.name == name)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if model is None:
        raise no_model(name)
    return model


def no_model(name: str) -> NotFound:
    """Suggests none: a key may not see all."""
    if ":" in name or "@" in name:
        model, mark, rest = re.split("([:@])", name, maxsplit=1)
        place = f"versions are at /v1/models/{model}/versions/{rest}"
        hint = place if mark == ":" else f"an alias goes behind the path: ?alias={rest}"
        return NotFound("model", name, hint)
    return NotFound("model", name, "GET /v1/models lists those there are")


def lock_or_create(session: Session, name: str, by: str) -> ModelRow:
    """The model called `name`, made when there is none, locked like `lock`. Raises `Invalid`."""
    check_name(name)
    while True:
        with suppress(NotFound):
            return lock(session, name)
        # IntegrityError: somebody made it at the same moment, and may have deleted it again before we lock
        with suppress(IntegrityError), session.begin_nested():
            session.add(ModelRow(name=name, created_by=by))


def summary(session: Session, name: str) -> Summary:
    """Raises `NotFound`."""
    return _summaries(session, [get(session, name)])[0]


def search(
    session: Session,
    *,
    q: str | None = None,
    tags: list[tuple[str, str]] | None = None,
    among: Collection[str] | None = None,
    page_size: int = 100,
    page_token: str | None = None,
) -> Page[Summary]:
    """Models by name, those whose name holds `q`, that have a version with all of `tags`, and that are
    `among` those when given."""
    query = select(ModelRow).order_by(ModelRow.name).limit(page_size + 1)
    if (last := after(page_token, str)) is not None:
        query = query.where(ModelRow.name > last)
    if among is not None:
        query = query.where(ModelRow.name.in_(among))
    if q:
        query = query.where(ModelRow.name.contains(q.lower(), autoescape=True))
    if tags:
        theirs = select(VersionRow.id).where(VersionRow.model_id == ModelRow.id)
        query = query.where(tagged(theirs, tags).exists())
    page = cut(list(session.scalars(query)), page_size, lambda m: m.name)
    return Page(_summaries(session, page.items), page.next_token)


def tagged(query: Select[T], tags: list[tuple[str, str]]) -> Select[T]:
    """Narrow a select over versions to those that carry all of `tags`. One look for each version: a tag that
    all versions carry must not be gathered from all of them for one page."""
    for key, value in tags:
        carries = exists().where(TagRow.version_id == VersionRow.id, TagRow.key == key, TagRow.value == value)
        query = query.where(carries)
    return query


def remove(session: Session, name: str) -> None:
    """Delete the model, its versions and its history.

    Raises `InUse` while an alias exists or a job needs a version, or when one was just being published.
    """
    waiting = _building(session, get(session, name))
    for version_id in sorted(waiting):  # tasks before the model, like `versions.remove`
        queue.cancel(session, "build", str(version_id))
    model = lock(session, name)
    if _building(session, model) - waiting:  # whose tasks cannot be cancelled with the model locked
        raise InUse(f"a version of {name} was published at this moment; ask again")
    aliases = session.scalars(select(AliasRow.name).where(AliasRow.model_id == model.id)).all()
    if aliases:
        raise InUse(f"{name} is still served as {', '.join(sorted(aliases))}; delete the alias first")
    refuse_while_at_work(session, f"{name} cannot be deleted", VersionRow.model_id == model.id)
    session.execute(delete(AliasEventRow).where(AliasEventRow.model_id == model.id))
    session.execute(delete(DeviceReportRow).where(DeviceReportRow.model_id == model.id))
    session.execute(delete(VersionRow).where(VersionRow.model_id == model.id))
    session.execute(delete(ModelRow).where(ModelRow.id == model.id))
    revision.note(session, "model", name)


def refuse_while_at_work(session: Session, what: str, which: ColumnElement[bool]) -> None:
    """Raises `InUse` naming a job that is not over and needs one of those versions."""
    open_jobs = select(JobRow.id).join(VersionRow, VersionRow.id == JobRow.version_id)
    job = session.scalar(open_jobs.where(JobRow.finished_at.is_(None), which).order_by(JobRow.id).limit(1))
    if job is not None:
        raise InUse(f"{what} while job {job} needs it; cancel the job first, or wait for it")


def _building(session: Session, model: ModelRow) -> set[int]:
    query = select(VersionRow.id).where(VersionRow.model_id == model.id, VersionRow.state == "building")
    return set(session.scalars(query))


def _summaries(session: Session, models: list[ModelRow]) -> list[Summary]:
    ids = [m.id for m in models]
    counted = (
        select(VersionRow.model_id, func.count(), func.max(VersionRow.number))
        .where(VersionRow.model_id.in_(ids))
        .group_by(VersionRow.model_id)
    )
    counts = {model_id: (count, latest) for model_id, count, latest in session.execute(counted)}
    aliases: dict[int, dict[str, int]] = {i: {} for i in ids}
    for model_id, alias, number in session.execute(
        select(AliasRow.model_id, AliasRow.name, VersionRow.number)
        .join(VersionRow, VersionRow.id == AliasRow.version_id)
        .where(AliasRow.model_id.in_(ids))
        .order_by(AliasRow.name)
    ):
        aliases[model_id][alias] = number
    return [
        Summary(m, counts.get(m.id, (0, None))[0], counts.get(m.id, (0, None))[1], aliases[m.id])
        for m in models
    ]
