"""The registry's revision: a number that increases with each change of models, aliases and keys.

Readers (`service/runtime/snapshot.py`) compare it with the revision of their copy, and reload only the
subjects that `changes_since` lists. Frequent writes, such as job progress and device reports, do not change
it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple
from uuid import uuid4

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from registry.tables import ChangeRow, RevisionRow

ChangeKind = Literal["model", "key"]
MAX_CHANGES = 10_000
"""Number of stored changes. A reader that is further behind reloads everything."""


class Changes(NamedTuple):
    revision: int
    models: set[str]
    keys: set[str]


def record_change(session: Session, kind: ChangeKind, subject: str) -> int:
    """Increment the revision and record the changed subject. Return the new revision.

    Holds the lock of the revision's row until the transaction ends, so revisions are committed in order.
    """
    revision = session.execute(
        update(RevisionRow)
        .where(RevisionRow.id == 1)
        .values(value=RevisionRow.value + 1)
        .returning(RevisionRow.value)
    ).scalar_one()
    session.add(ChangeRow(revision=revision, kind=kind, subject=subject))
    if revision % 1000 == 0:
        session.execute(delete(ChangeRow).where(ChangeRow.revision <= revision - MAX_CHANGES))
    return revision


def current(session: Session) -> int:
    return session.execute(select(RevisionRow.value)).scalar_one()


def registry_id(session: Session) -> str:
    """Return the identifier that the registry got when its database was migrated or recovered."""
    return session.execute(select(RevisionRow.registry_id)).scalar_one()


def renew_registry_id(session: Session) -> str:
    """Assign and return a new identifier, after a restore: revisions after the backup are used again.

    The revision is incremented without a record of a change, so that every reader reloads everything.
    """
    identifier = uuid4().hex
    session.execute(
        update(RevisionRow)
        .where(RevisionRow.id == 1)
        .values(registry_id=identifier, value=RevisionRow.value + 1)
    )
    return identifier


def changes_since(session: Session, revision: int) -> Changes | None:
    """Return the changes after `revision`, or None if some of them were deleted."""
    newest = current(session)
    # Read up to `newest` only: on PostgreSQL another transaction may commit between the two statements.
    rows = session.execute(
        select(ChangeRow.kind, ChangeRow.subject).where(
            ChangeRow.revision > revision, ChangeRow.revision <= newest
        )
    ).all()
    if len(rows) != newest - revision:
        return None
    return Changes(
        newest, {s for kind, s in rows if kind == "model"}, {s for kind, s in rows if kind == "key"}
    )
