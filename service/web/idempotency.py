"""`Idempotency-Key`: a POST that creates something can be sent again, and creates it once.

The answer is kept in the transaction of what it speaks of, so there is no moment in which one exists
without the other. A second request with the same key waits for the first one's transaction and gets
its answer. Follows draft-ietf-httpapi-idempotency-key-header.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated

import msgspec
from fastapi import Header, Request, Response
from pydantic import BaseModel
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from registry.errors import invalid_field
from registry.keys import Key
from registry.tables import IdempotencyRow, now

KEPT = timedelta(days=1)
IdempotencyKey = Annotated[
    str | None, Header(min_length=1, max_length=255, description="send again with the same key: done once")
]


class Done(msgspec.Struct, frozen=True):
    record: BaseModel
    status: int
    location: str | None = None


Finish = Callable[[bytes], bytes]
"""Makes the answer from the kept one: what must not be stored is added here."""


def seen(session: Session, key: str | None, caller: Key) -> bool:
    """Whether `once` will answer with what it gave before: checks that cost something can be left out."""
    return key is not None and session.get(IdempotencyRow, (caller.id, key)) is not None


def once(
    session: Session,
    key: str | None,
    caller: Key,
    request: Request,
    body: BaseModel,
    do: Callable[[], Done],
    finish: Finish = bytes,
) -> Response:
    """The answer of `do`, or the one it gave when this key was first seen.

    Raises `Invalid` when the key came with another request before.
    """
    if key is None:
        done = do()
        return _json(finish(_encode(done)), done.status, done.location)
    asked = f"{request.method} {request.url.path}\n{body.model_dump_json(exclude_unset=True)}"
    digest = hashlib.sha256(asked.encode()).hexdigest()
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < now() - KEPT))
    row = IdempotencyRow(caller=caller.id, key=key, request=digest)
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        return _replay(session.get_one(IdempotencyRow, (caller.id, key)), digest, finish)
    done = do()
    kept = _encode(done)
    row.status, row.location, row.answer = done.status, done.location, kept.decode()
    return _json(finish(kept), done.status, done.location)


def _replay(row: IdempotencyRow, digest: str, finish: Finish) -> Response:
    if row.request != digest:
        raise invalid_field(
            "Idempotency-Key",
            "used for another request",
            "a new key",
            detail="this Idempotency-Key was already used for a different request",
        )
    assert row.status is not None, "the row and its answer are committed together"
    return _json(finish((row.answer or "").encode()), row.status, row.location)


def _encode(done: Done) -> bytes:
    return done.record.model_dump_json().encode()


def _json(body: bytes, status: int, location: str | None) -> Response:
    headers = {"Location": location} if location else None
    return Response(body, status, headers, media_type="application/json")
