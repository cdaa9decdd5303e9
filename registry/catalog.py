"""What a reader of the docs wants to know of every model: the version that answers for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session, aliased

from registry.aliases import CHAMPION
from registry.errors import NotFound
from registry.tables import AliasRow, ExportRow, ModelRow, VersionRow


class Entry(NamedTuple):
    name: str
    version: int
    alias: str | None  # champion, or None where there is none and the newest ready version stands in
    runtime: str
    description: str
    signature: dict[str, Any]


class Exported(NamedTuple):
    """The newest ready export of a version in one quantization."""

    model: str
    version: int
    quantize: str
    bytes: int | None
    min_runtime: str | None
    report: dict[str, Any] | None


def exported(session: Session, versions: Sequence[tuple[str, int]]) -> list[Exported]:
    """What devices can have of these versions, each a model's name and a number."""
    newest = (
        select(func.max(ExportRow.id))
        .where(ExportRow.state == "ready")
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
        .order_by(ExportRow.quantize.desc())
    )
    return [Exported(*row) for row in session.execute(query)]


def entries(session: Session, name: str | None = None) -> list[Entry]:
    """Every model that can answer, by name, as its champion or else its newest ready version.

    Raises `NotFound` when `name` is given and cannot answer.
    """
    newest = (
        select(VersionRow.id)
        .where(VersionRow.model_id == ModelRow.id, VersionRow.state == "ready")
        .order_by(VersionRow.number.desc())
        .limit(1)
        .correlate(ModelRow)
        .scalar_subquery()
    )
    champion = aliased(AliasRow)
    shown = aliased(VersionRow)
    query = (
        select(ModelRow.name, shown.number, champion.name, shown.runtime, shown.description, shown.signature)
        .outerjoin(champion, (champion.model_id == ModelRow.id) & (champion.name == CHAMPION))
        .join(shown, shown.id == func.coalesce(champion.version_id, newest))
        .order_by(ModelRow.name)
    )
    if name is not None:
        query = query.where(ModelRow.name == name)
    found = [Entry(*row) for row in session.execute(query)]
    if name is not None and not found:
        raise NotFound("model with a version that is ready", name)
    return found
