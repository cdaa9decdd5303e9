"""API keys: scopes, an optional list of models, an expiry. Only the sha256 of a key is stored.

A key is `trv_<id>_<secret>`. The secret has 256 random bits, so a plain sha256 is sufficient.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from registry import revision
from registry.artifacts import create_directory, write_durably
from registry.errors import NotFound, invalid_field
from registry.names import check_name
from registry.pages import Page, decode_token, make_page
from registry.tables import KeyRow, now
from registry.vocabulary import SCOPES


class KeyWithSecret(msgspec.Struct, frozen=True):
    """A new key together with its text, which is not available later."""

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

    def allows(self, *scopes: str) -> bool:
        """Report whether the key holds one of `scopes`."""
        return "admin" in self.scopes or not self.scopes.isdisjoint(scopes)

    def reaches(self, model: str) -> bool:
        """Report whether the key may access `model`."""
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
) -> KeyWithSecret:
    """Issue a key. With `secret`, the text of the key is the same if the request is repeated.

    Raises `Invalid` with the field.
    """
    if not scopes or (unknown := sorted(set(scopes) - set(SCOPES))):
        detail = f"unknown scope {', '.join(unknown)}" if scopes else "a key needs at least one scope"
        raise invalid_field("scopes", "not a scope", ", ".join(SCOPES), detail=detail)
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


def key_text(key_id: str, secret: str) -> str:
    """Return the key in the form that clients send."""
    return f"trv_{key_id}_{secret}"


def rotate(session: Session, key_id: str, *, secret: str | None = None) -> KeyWithSecret:
    """Replace the key's secret. Raises `NotFound`, also for revoked and expired keys."""
    row = get(session, key_id)
    if row.revoked_at is not None:
        raise NotFound("key", key_id, "it was revoked")
    if row.expires_at is not None and row.expires_at <= now():
        raise NotFound("key", key_id, "it has expired")
    return _issue(session, row, secret)


def revoke(session: Session, key_id: str) -> KeyRow:
    """Revoke the key. Raises `NotFound`."""
    row = get(session, key_id)
    row.revoked_at = row.revoked_at or now()
    revision.record_change(session, "key", row.id)
    return row


def get(session: Session, key_id: str) -> KeyRow:
    """Raises `NotFound`."""
    row = session.get(KeyRow, key_id)
    if row is None:
        raise NotFound("key", key_id)
    return row


def has_text(session: Session, key_id: str, text: str) -> bool:
    """Report whether `text` is the current text of the key. Raises `NotFound`."""
    return hmac.compare_digest(_digest(text), get(session, key_id).digest)


def search(session: Session, *, page_size: int = 100, page_token: str | None = None) -> Page[KeyRow]:
    """Return a page of all keys by id, including revoked ones."""
    query = select(KeyRow).order_by(KeyRow.id).limit(page_size + 1)
    if (last := decode_token(page_token, str)) is not None:
        query = query.where(KeyRow.id > last)
    return make_page(list(session.scalars(query)), page_size, lambda k: k.id)


def active_keys(session: Session, ids: set[str] | None = None) -> dict[str, Key]:
    """Return the keys that are neither revoked nor expired, by id. `ids` restricts the search."""
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


class Verifier:
    """Verifies keys that are presented again and again: computes the digest of each valid one once.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self._active: dict[str, Key] = {}
        self._verified: dict[str, Key] = {}

    def verify(self, presented: str, active: dict[str, Key]) -> Key | None:
        """Return what `verify` returns. `active` must be replaced when it changes, not modified."""
        if active is not self._active:
            self._active, self._verified = active, {}
        key = self._verified.get(presented)
        if key is not None:
            return None if _is_expired(key) else key
        if (key := verify(presented, active)) is not None:
            self._verified[presented] = key  # one text for each active key
        return key


def verify(presented: str, active: dict[str, Key]) -> Key | None:
    """Return the key with the text `presented`, or None. Digests are compared in constant time."""
    parts = presented.split("_", 2)
    if len(parts) != 3 or parts[0] != "trv":
        return None
    key = active.get(parts[1])
    if key is None or not hmac.compare_digest(_digest(presented), key.digest):
        return None
    return None if _is_expired(key) else key


def is_active(key: Key, active: dict[str, Key]) -> bool:
    """Report whether a key that was verified earlier is still valid: not revoked, rotated or expired."""
    current = active.get(key.id)
    return current is not None and current.digest == key.digest and not _is_expired(current)


def _is_expired(key: Key) -> bool:
    return key.expires_at is not None and key.expires_at <= now()


def ensure_admin_key(session: Session, file: Path) -> bool:
    """In a registry without keys, create an admin key and write it to `file` (0600). Return True if created.

    The file is written before the commit: after a crash between the two, the next start replaces the file.
    """
    if session.scalar(select(KeyRow.id).limit(1)) is not None:
        return False
    issued = create(session, "admin", ["admin"], by="trivium")
    create_directory(file.parent)
    # before the commit: the text of the key cannot be restored later
    write_durably(file, f"{issued.key}\n".encode(), file.with_suffix(".partial"), 0o600)
    return True


def _issue(session: Session, row: KeyRow, secret: str | None) -> KeyWithSecret:
    key = key_text(row.id, secret or secrets.token_urlsafe(32))
    row.digest = _digest(key)
    revision.record_change(session, "key", row.id)
    session.flush()
    return KeyWithSecret(row, key)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
