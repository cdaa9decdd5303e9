"""`Idempotency-Key`: a POST that creates something can be repeated and takes effect once.

The response is stored in the same transaction as what it created, so neither exists without the other. A
second request with the same key waits for the first one's transaction and gets its response. Follows
draft-ietf-httpapi-idempotency-key-header.
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

RETENTION = timedelta(days=1)
IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="repeat the request with the same key: done once"),
]


class IdempotentResult(msgspec.Struct, frozen=True):
    """The response of a request: its body, status and Location header."""

    record: BaseModel
    status: int
    location: str | None = None


Finish = Callable[[bytes], bytes]
"""Derives the response body from the stored one: adds what must not be stored."""


def is_repeat(session: Session, key: str | None, caller: Key) -> bool:
    """Return whether `run_once` will return a stored response, so that costly checks can be skipped."""
    return key is not None and session.get(IdempotencyRow, (caller.id, key)) is not None


def run_once(
    session: Session,
    key: str | None,
    caller: Key,
    request: Request,
    body: BaseModel,
    operation: Callable[[], IdempotentResult],
    finish: Finish = bytes,
) -> Response:
    """Run `operation` and return its response, or the stored response of an earlier request with this key.

    Keys of different callers are independent. Raises `Invalid` when the key was used for a different request.
    """
    if key is None:
        result = operation()
        return _json_response(finish(_encode(result)), result.status, result.location)
    identity = f"{request.method} {request.url.path}\n{body.model_dump_json(exclude_unset=True)}"
    digest = hashlib.sha256(identity.encode()).hexdigest()
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < now() - RETENTION))
    row = IdempotencyRow(caller=caller.id, key=key, request=digest)
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        return _stored_response(session.get_one(IdempotencyRow, (caller.id, key)), digest, finish)
    result = operation()
    stored = _encode(result)
    row.status, row.location, row.answer = result.status, result.location, stored.decode()
    return _json_response(finish(stored), result.status, result.location)


def _stored_response(row: IdempotencyRow, digest: str, finish: Finish) -> Response:
    if row.request != digest:
        raise invalid_field(
            "Idempotency-Key",
            "used for a different request",
            "a new key",
            detail="this Idempotency-Key was already used for a different request",
        )
    assert row.status is not None, "the row and its response are committed together"
    return _json_response(finish((row.answer or "").encode()), row.status, row.location)


def _encode(result: IdempotentResult) -> bytes:
    return result.record.model_dump_json().encode()


def _json_response(body: bytes, status: int, location: str | None) -> Response:
    headers = {"Location": location} if location else None
    return Response(body, status, headers, media_type="application/json")
