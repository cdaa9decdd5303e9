"""The catalog for the documentation pages: each model with the version that serves it, and its exports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import case, func, select, tuple_
from sqlalchemy.orm import Session, aliased

from registry.aliases import CHAMPION
from registry.errors import NotFound
from registry.tables import AliasRow, ExportRow, ModelRow, VersionRow
from registry.vocabulary import QUANTIZE_MODES, READY


class CatalogEntry(NamedTuple):
    name: str
    version: int
    alias: str | None  # champion, or None: without a champion the newest ready version is listed
    runtime: str
    description: str
    signature: dict[str, Any]


class ExportSummary(NamedTuple):
    """The newest ready export of a version with one quantize mode."""

    model: str
    version: int
    quantize: str
    bytes: int | None
    min_runtime: str | None
    report: dict[str, Any] | None


def export_summaries(session: Session, versions: Sequence[tuple[str, int]]) -> list[ExportSummary]:
    """Return the newest ready exports of `versions`, pairs of model name and version number."""
    newest = (
        select(func.max(ExportRow.id))
        .where(ExportRow.state == READY)
        .group_by(ExportRow.version_id, ExportRow.quantize)
    )
    query = (
        select(
            ModelRow.name,
            VersionRow.number,
            ExportRow.quantize,
            ExportRow.bytes,
            ExportRow.min_runtime,
            ExportRow.report,
        )
        .join(VersionRow, VersionRow.id == ExportRow.version_id)
        .join(ModelRow, ModelRow.id == VersionRow.model_id)
        .where(ExportRow.id.in_(newest), tuple_(ModelRow.name, VersionRow.number).in_(versions))
        .order_by(case({mode: place for place, mode in enumerate(QUANTIZE_MODES)}, value=ExportRow.quantize))
    )
    return [ExportSummary(*row) for row in session.execute(query)]


def entries(session: Session, name: str | None = None) -> list[CatalogEntry]:
    """Return every model with a ready version, by name: its champion, or else its newest ready version.

    `name` restricts the result to one model. Raises `NotFound` if that model lacks a ready version.
    """
    newest = (
        select(VersionRow.id)
        .where(VersionRow.model_id == ModelRow.id, VersionRow.state == READY)
        .order_by(VersionRow.number.desc())
        .limit(1)
        .correlate(ModelRow)
        .scalar_subquery()
    )
    champion = aliased(AliasRow)
    listed = aliased(VersionRow)
    query = (
        select(
            ModelRow.name, listed.number, champion.name, listed.runtime, listed.description, listed.signature
        )
        .outerjoin(champion, (champion.model_id == ModelRow.id) & (champion.name == CHAMPION))
        .join(listed, listed.id == func.coalesce(champion.version_id, newest))
        .order_by(ModelRow.name)
    )
    if name is not None:
        query = query.where(ModelRow.name == name)
    result = [CatalogEntry(*row) for row in session.execute(query)]
    if name is not None and not result:
        raise NotFound("model with a ready version", name)
    return result
