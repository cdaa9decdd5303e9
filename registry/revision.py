"""The revision: one number that every change of models, aliases and keys raises.

Readers (`service/runtime/snapshot.py`) compare it with the one they know and reload only the subjects
that `since` names. High-rate writes (task progress, device reports) never touch it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from registry.tables import ChangeRow, RevisionRow

Kind = Literal["model", "key"]
KEPT = 10_000
"""How many changes are kept: a reader further behind than this reloads everything."""


class Changes(NamedTuple):
    revision: int
    models: set[str]
    keys: set[str]


def note(session: Session, kind: Kind, subject: str) -> int:
    """Raise the revision and note what changed. Holds the row's lock until the transaction ends, so
    revisions commit in their order. Returns the new revision."""
    revision = session.execute(
        update(RevisionRow)
        .where(RevisionRow.id == 1)
        .values(value=RevisionRow.value + 1)
        .returning(RevisionRow.value)
    ).scalar_one()
    session.add(ChangeRow(revision=revision, kind=kind, subject=subject))
    if revision % 1000 == 0:
        session.execute(delete(ChangeRow).where(ChangeRow.revision <= revision - KEPT))
    return revision


def revision(session: Session) -> int:
    return session.execute(select(RevisionRow.value)).scalar_one()


def registry_id(session: Session) -> str:
    """The identifier that the registry got when its database was migrated; it never changes."""
    return session.execute(select(RevisionRow.registry_id)).scalar_one()


def since(session: Session, known: int) -> Changes | None:
    """What changed after revision `known`, or None when that is too long ago to say."""
    current = revision(session)
    # Read up to `current` only: on PostgreSQL a later commit may slip in between the two statements.
    rows = session.execute(
        select(ChangeRow.kind, ChangeRow.subject).where(
            ChangeRow.revision > known, ChangeRow.revision <= current
        )
    ).all()
    if len(rows) != current - known:
        return None
    return Changes(
        current, {s for kind, s in rows if kind == "model"}, {s for kind, s in rows if kind == "key"}
    )
