"""API keys: scopes, an optional list of models, an expiry. Only the sha256 of a secret is stored.

A key reads `trv_<id>_<secret>`; the secret holds 256 random bits, so a plain sha256 is enough.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, get_args

import msgspec
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from registry import revision
from registry.artifacts import fsync_directory
from registry.errors import NotFound, invalid_field
from registry.names import check_name
from registry.pages import Page, after, cut
from registry.tables import KeyRow, now

Scope = Literal["predict", "publish", "promote", "edge", "batch", "admin"]
SCOPES: tuple[str, ...] = get_args(Scope)


class Issued(msgspec.Struct, frozen=True):
    """A key at the one moment when its text is known."""

    row: KeyRow
    key: str


class Key(msgspec.Struct, frozen=True):
    """A key as a server holds it in memory."""

    id: str
    name: str
    digest: str
    scopes: frozenset[str]
    models: frozenset[str] | None
    expires_at: datetime | None

    def allows(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes

    def reaches(self, model: str) -> bool:
        return self.models is None or model in self.models


def create(
    session: Session,
    name: str,
    scopes: list[str],
    *,
    by: str,
    models: list[str] | None = None,
    expires_in_s: float | None = None,
    secret: str | None = None,
) -> Issued:
    """Issue a key. `secret` is for keys whose text must be the same when asked for again.

    Raises `Invalid` naming the field.
    """
    if not scopes or (unknown := sorted(set(scopes) - set(SCOPES))):
        raise invalid_field(
            "scopes",
            "not a scope",
            ", ".join(SCOPES),
            detail=f"unknown scope {', '.join(unknown)}" if scopes else "a key needs at least one scope",
        )
    for model in models or ():
        check_name(model, "models")
    row = KeyRow(
        id=secrets.token_hex(6),
        name=name,
        digest="",
        scopes=sorted(set(scopes)),
        models=sorted(set(models)) if models is not None else None,
        created_by=by,
        created_at=now(),
        expires_at=None if expires_in_s is None else now() + timedelta(seconds=expires_in_s),
    )
    session.add(row)
    return _issue(session, row, secret)


def text(key_id: str, secret: str) -> str:
    """A key as its owner presents it."""
    return f"trv_{key_id}_{secret}"


def rotate(session: Session, key_id: str, *, secret: str | None = None) -> Issued:
    """Give the key a new secret; the old one stops working. Raises `NotFound`, also when it has ended."""
    row = get(session, key_id)
    if row.revoked_at is not None:
        raise NotFound("key", key_id, "it was revoked")
    if row.expires_at is not None and row.expires_at <= now():
        raise NotFound("key", key_id, "it has expired")
    return _issue(session, row, secret)


def revoke(session: Session, key_id: str) -> KeyRow:
    """End the key. Raises `NotFound`."""
    row = get(session, key_id)
    row.revoked_at = row.revoked_at or now()
    revision.note(session, "key", row.id)
    return row


def get(session: Session, key_id: str) -> KeyRow:
    """Raises `NotFound`."""
    row = session.get(KeyRow, key_id)
    if row is None:
        raise NotFound("key", key_id)
    return row


def search(session: Session, *, page_size: int = 100, page_token: str | None = None) -> Page[KeyRow]:
    """Every key, revoked ones too, by id."""
    query = select(KeyRow).order_by(KeyRow.id).limit(page_size + 1)
    if (last := after(page_token, str)) is not None:
        query = query.where(KeyRow.id > last)
    return cut(list(session.scalars(query)), page_size, lambda k: k.id)


def live(session: Session, ids: set[str] | None = None) -> dict[str, Key]:
    """The keys that open doors now, by id; only those among `ids` when given."""
    query = select(KeyRow).where(
        KeyRow.revoked_at.is_(None), or_(KeyRow.expires_at.is_(None), KeyRow.expires_at > now())
    )
    if ids is not None:
        query = query.where(KeyRow.id.in_(ids))
    return {
        row.id: Key(
            id=row.id,
            name=row.name,
            digest=row.digest,
            scopes=frozenset(row.scopes),
            models=None if row.models is None else frozenset(row.models),
            expires_at=row.expires_at,
        )
        for row in session.scalars(query)
    }


def verify(presented: str, live: dict[str, Key]) -> Key | None:
    """The key that `presented` is, or None. The secret's digest is compared in constant time."""
    parts = presented.split("_", 2)
    if len(parts) != 3 or parts[0] != "trv":
        return None
    key = live.get(parts[1])
    if key is None or not hmac.compare_digest(_digest(presented), key.digest):
        return None
    return None if _is_over(key) else key


def is_live(key: Key, live: dict[str, Key]) -> bool:
    """Whether one that was verified a while ago would be now: not revoked, rotated or expired since."""
    found = live.get(key.id)
    return found is not None and found.digest == key.digest and not _is_over(found)


def _is_over(key: Key) -> bool:
    return key.expires_at is not None and key.expires_at <= now()


def ensure_admin(session: Session, file: Path) -> bool:
    """On a registry without keys, make an admin key and write it to `file` (0600). True when made.

    The file comes first: a crash before the commit leaves a file that the next start replaces.
    """
    if session.scalar(select(KeyRow.id).limit(1)) is not None:
        return False
    issued = create(session, "admin", ["admin"], by="trivium")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as out:
        out.write(issued.key + "\n")
        out.flush()
        os.fsync(out.fileno())
    partial.rename(file)
    fsync_directory(file.parent)  # before the commit: nobody can make this key's text again
    return True


def _issue(session: Session, row: KeyRow, secret: str | None) -> Issued:
    key = text(row.id, secret or secrets.token_urlsafe(32))
    row.digest = _digest(key)
    revision.note(session, "key", row.id)
    session.flush()
    return Issued(row, key)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
