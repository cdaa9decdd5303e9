"""The signed documents of the TUF repository, stored byte for byte as they were signed.

`service/edge/tuf_repository.py` signs them.
"""

from __future__ import annotations

from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from registry.errors import NotFound
from registry.tables import TufMetadataRow

ROLES = ("root", "targets", "snapshot", "timestamp")
MAX_VERSIONS = 50
"""Stored versions of each role except root. A client in the middle of an update needs versions before the
newest. All versions of root are kept, because clients verify each of them in turn."""
_LOCK_ID = 7342  # PostgreSQL advisory lock of the signer


def lock(session: Session) -> None:
    """Block other signers until the transaction ends. SQLite allows one writer at a time anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK_ID})"))


def add(session: Session, role: str, version: int, content: str) -> None:
    """Store a document, and delete versions of its role beyond `MAX_VERSIONS`."""
    session.add(TufMetadataRow(role=role, version=version, content=content))
    if role != "root":
        session.flush()
        newest_surplus = (
            select(TufMetadataRow.version)
            .where(TufMetadataRow.role == role)
            .order_by(TufMetadataRow.version.desc())
            .offset(MAX_VERSIONS)
            .limit(1)
            .scalar_subquery()
        )
        session.execute(
            delete(TufMetadataRow).where(
                TufMetadataRow.role == role, TufMetadataRow.version <= newest_surplus
            )
        )
    session.flush()


def newest(session: Session, role: str) -> str | None:
    """Return the newest document of `role`, or None before the first one."""
    number = select(func.max(TufMetadataRow.version)).where(TufMetadataRow.role == role).scalar_subquery()
    return session.scalar(
        select(TufMetadataRow.content).where(TufMetadataRow.role == role, TufMetadataRow.version == number)
    )


def get(session: Session, role: str, version: int) -> str:
    """Raises `NotFound`."""
    row = session.get(TufMetadataRow, (role, version))
    if row is None:
        raise NotFound("TUF document", f"{version}.{role}.json")
    return row.content
