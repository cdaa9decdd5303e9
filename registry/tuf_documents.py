"""The signed documents of the TUF repository: kept as they were signed, byte for byte.

Also the file that each alias offers its devices. Signing is `service/edge/tuf_repository.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from registry.aliases import for_the_others, is_rolling_out
from registry.errors import NotFound
from registry.tables import AliasRow, ExportRow, ModelRow, TufMetadataRow

ROLES = ("root", "targets", "snapshot", "timestamp")
KEPT = 50
"""How many versions of each role but root are kept: clients that are in the middle of an update need the
ones before the newest. Every root is kept, a client walks through all of them."""
_LOCK = 7342  # PostgreSQL advisory lock: one signer at a time


class Offered(msgspec.Struct, frozen=True):
    """A file that an alias offers: `name` is its TUF target path."""

    name: str
    version: int
    sha256: str
    bytes: int
    min_runtime: str
    percent: int | None = None  # of the devices, while a rollout is on; None: all


def hold(session: Session) -> None:
    """Keep other signers waiting until this transaction ends. SQLite's one writer does that by itself."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))


def add(session: Session, role: str, version: int, content: str) -> None:
    session.add(TufMetadataRow(role=role, version=version, content=content))
    if role != "root":
        session.execute(
            delete(TufMetadataRow).where(
                TufMetadataRow.role == role, TufMetadataRow.version <= version - KEPT
            )
        )
    session.flush()


def newest(session: Session, role: str) -> str | None:
    """The newest document of `role`, or None before the first."""
    newest = select(func.max(TufMetadataRow.version)).where(TufMetadataRow.role == role).scalar_subquery()
    return session.scalar(
        select(TufMetadataRow.content).where(TufMetadataRow.role == role, TufMetadataRow.version == newest)
    )


def get(session: Session, role: str, version: int) -> str:
    """Raises `NotFound`."""
    row = session.get(TufMetadataRow, (role, version))
    if row is None:
        raise NotFound("TUF document", f"{version}.{role}.json")
    return row.content


def offered(session: Session) -> list[Offered]:
    """What every alias offers now, by name: for each quantization the newest export of its version.

    Older exports that run on older runtimes are there too, as `{quantize}.{min_runtime}.tflite`.
    While a rollout is on, the plain name is the version before, which most devices keep, and
    `{quantize}.rollout.tflite` the new one with its share.
    """
    found: list[Offered] = []
    for alias, model in session.execute(
        select(AliasRow, ModelRow.name).join(ModelRow, ModelRow.id == AliasRow.model_id)
    ):
        prefix = f"{model}/{alias.name}"
        if not is_rolling_out(alias):
            found += _files(session, alias.version_id, alias.version.number, prefix, ".tflite", None)
            continue
        before = for_the_others(session, alias)
        if before is not None:
            found += _files(session, before.id, before.number, prefix, ".tflite", None)
        if alias.edge_percent:
            number, share = alias.version.number, alias.edge_percent
            found += _files(session, alias.version_id, number, prefix, ".rollout.tflite", share)
    return sorted(found, key=lambda o: o.name)


def _files(
    session: Session, version_id: int, number: int, prefix: str, suffix: str, percent: int | None
) -> Sequence[Offered]:
    newest = (
        select(func.max(ExportRow.id))
        .where(ExportRow.version_id == version_id, ExportRow.state == "ready")
        .group_by(ExportRow.quantize, ExportRow.min_runtime)
    )
    query = (
        select(ExportRow.quantize, ExportRow.blob, ExportRow.bytes, ExportRow.min_runtime)
        .where(ExportRow.id.in_(newest))
        .order_by(ExportRow.id.desc())
    )
    found: dict[str, Offered] = {}
    for quantize, blob, size, runtime in session.execute(query):
        name = f"{prefix}/{quantize}{suffix}"
        if name in found:  # for devices whose runtime is too old for the newest
            name = f"{prefix}/{quantize}.{runtime}{suffix}"
        found[name] = Offered(name, number, blob or "", size or 0, runtime or "", percent)
    return list(found.values())
