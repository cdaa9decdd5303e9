"""Models: names that versions are published under."""

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
from registry.pages import Page, decode_token, make_page
from registry.tables import (
    AliasEventRow,
    AliasRow,
    DeviceReportRow,
    ModelRow,
    PredictionLogRow,
    TagRow,
    VersionRow,
)
from registry.vocabulary import BUILD_TASK, BUILDING

T = TypeVar("T")


class ModelSummary(NamedTuple):
    """A model with the figures of its list entry."""

    model: ModelRow
    versions: int
    latest: int | None  # the highest existing version number
    aliases: dict[str, int]  # alias -> version number


def get(session: Session, name: str) -> ModelRow:
    """Raises `NotFound`."""
    model = session.scalar(select(ModelRow).where(ModelRow.name == name))
    if model is None:
        raise model_not_found(name)
    return model


def lock(session: Session, name: str) -> ModelRow:
    """Return the model, locked against other writers until the transaction ends. Raises `NotFound`."""
    model = session.scalar(
        select(ModelRow)
        .where(ModelRow.name == name)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if model is None:
        raise model_not_found(name)
    return model


def model_not_found(name: str) -> NotFound:
    """Build the error. It suggests no other names, because the caller's key may not access all models."""
    if ":" in name or "@" in name:
        model, mark, rest = re.split("([:@])", name, maxsplit=1)
        version_hint = f"versions are at /v1/models/{model}/versions/{rest}"
        hint = version_hint if mark == ":" else f"pass the alias as a query parameter: ?alias={rest}"
        return NotFound("model", name, hint)
    return NotFound("model", name, "GET /v1/models lists the existing models")


def lock_or_create(session: Session, name: str, by: str) -> ModelRow:
    """Return the model `name`, locked; create it if it does not exist. Raises `Invalid`."""
    check_name(name)
    while True:
        with suppress(NotFound):
            return lock(session, name)
        # IntegrityError: another transaction created it at the same moment. It may be deleted again before
        # this one locks it, hence the loop.
        with suppress(IntegrityError), session.begin_nested():
            session.add(ModelRow(name=name, created_by=by))


def summary(session: Session, name: str) -> ModelSummary:
    """Raises `NotFound`."""
    return _summaries(session, [get(session, name)])[0]


def search(
    session: Session,
    *,
    q: str | None = None,
    tags: list[tuple[str, str]] | None = None,
    names: Collection[str] | None = None,
    page_size: int = 100,
    page_token: str | None = None,
) -> Page[ModelSummary]:
    """Return a page of models by name.

    `q` is part of the name; `tags` must all be on one version of the model; `names` restricts the search.
    """
    query = select(ModelRow).order_by(ModelRow.name).limit(page_size + 1)
    if (last := decode_token(page_token, str)) is not None:
        query = query.where(ModelRow.name > last)
    if names is not None:
        query = query.where(ModelRow.name.in_(names))
    if q:
        query = query.where(ModelRow.name.contains(q.lower(), autoescape=True))
    if tags:
        versions = select(VersionRow.id).where(VersionRow.model_id == ModelRow.id)
        query = query.where(with_tags(versions, tags).exists())
    page = make_page(list(session.scalars(query)), page_size, lambda m: m.name)
    return Page(_summaries(session, page.items), page.next_token)


def with_tags(query: Select[T], tags: list[tuple[str, str]]) -> Select[T]:
    """Restrict a query of versions to those that have all `tags`.

    Uses one lookup per version, so that a tag that all versions have is not collected from all of them for
    one page.
    """
    for key, value in tags:
        has_tag = exists().where(TagRow.version_id == VersionRow.id, TagRow.key == key, TagRow.value == value)
        query = query.where(has_tag)
    return query


def remove(session: Session, name: str) -> None:
    """Delete the model, its versions and its history. A worker deletes its prediction log soon after.

    Raises `NotFound`, `InUse` while an alias exists, an open job scores with the model or trains it, or a
    version is published at the same moment.
    """
    building = _building(session, get(session, name))
    for version_id in sorted(building):  # tasks before the model: same lock order as `versions.remove`
        queue.cancel(session, BUILD_TASK, str(version_id))
    model = lock(session, name)
    if _building(session, model) - building:  # their tasks cannot be cancelled while the model is locked
        raise InUse(f"a version of {name} was published at the same time; send the request again")
    aliases = session.scalars(select(AliasRow.name).where(AliasRow.model_id == model.id)).all()
    if aliases:
        raise InUse(f"{name} still has the alias {', '.join(sorted(aliases))}; delete the alias first")
    require_no_open_job(session, f"{name} cannot be deleted", JobRow.model == name)
    session.execute(delete(AliasEventRow).where(AliasEventRow.model_id == model.id))
    session.execute(delete(DeviceReportRow).where(DeviceReportRow.model_id == model.id))
    session.execute(delete(PredictionLogRow).where(PredictionLogRow.model_id == model.id))
    session.execute(delete(VersionRow).where(VersionRow.model_id == model.id))
    session.execute(delete(ModelRow).where(ModelRow.id == model.id))
    revision.record_change(session, "model", name)


def require_no_open_job(session: Session, refusal: str, condition: ColumnElement[bool]) -> None:
    """Raises `InUse`, starting with `refusal`, if an open job meets `condition`."""
    query = select(JobRow.id).where(JobRow.finished_at.is_(None), condition).order_by(JobRow.id).limit(1)
    job_id = session.scalar(query)
    if job_id is not None:
        raise InUse(f"{refusal} while job {job_id} needs it; cancel the job first, or wait for it")


def _building(session: Session, model: ModelRow) -> set[int]:
    query = select(VersionRow.id).where(VersionRow.model_id == model.id, VersionRow.state == BUILDING)
    return set(session.scalars(query))


def _summaries(session: Session, models: list[ModelRow]) -> list[ModelSummary]:
    ids = [m.id for m in models]
    count_query = (
        select(VersionRow.model_id, func.count(), func.max(VersionRow.number))
        .where(VersionRow.model_id.in_(ids))
        .group_by(VersionRow.model_id)
    )
    counts = {model_id: (count, latest) for model_id, count, latest in session.execute(count_query)}
    aliases: dict[int, dict[str, int]] = {i: {} for i in ids}
    for model_id, alias, number in session.execute(
        select(AliasRow.model_id, AliasRow.name, VersionRow.number)
        .join(VersionRow, VersionRow.id == AliasRow.version_id)
        .where(AliasRow.model_id.in_(ids))
        .order_by(AliasRow.name)
    ):
        aliases[model_id][alias] = number
    summaries = []
    for model in models:
        count, latest = counts.get(model.id, (0, None))
        summaries.append(ModelSummary(model, count, latest, aliases[model.id]))
    return summaries
