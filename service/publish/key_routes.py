"""Routes of API keys: create, list, rotate and revoke."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response

from registry import keys
from registry.errors import Conflict
from service.publish.model_schemas import IssuedKey, KeyBody, KeyRecord
from service.web.deps import CallerDep, ReadDep, WriteDep, require_scope
from service.web.idempotency import IdempotencyKey, IdempotentResult, run_once
from service.web.listing import ListResponse, PageQuery, list_response
from service.web.problems import problem_responses

router = APIRouter(tags=["keys"])
KeyId = Annotated[str, Path(description="the key's id, not its secret", pattern="^[0-9a-z]{1,64}$")]


@router.post(
    "/v1/keys",
    dependencies=[require_scope("admin")],
    status_code=201,
    response_model=IssuedKey,
    responses=problem_responses(409, 413, 422),
)
def create_key(
    body: KeyBody,
    request: Request,
    session: WriteDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a key. The response contains the secret, which is not stored."""
    secret = _secret(request, idempotency_key)

    def create() -> IdempotentResult:
        issued = keys.create(
            session,
            body.name,
            list(body.scopes),
            by=caller.name,
            models=body.models,
            expires_in_s=body.expires_in,
            secret=secret,
        )
        return IdempotentResult(KeyRecord.of(issued.row), 201, f"/v1/keys/{issued.row.id}")

    def with_secret(stored: bytes) -> bytes:
        record = msgspec.json.decode(stored)
        key = keys.key_text(record["id"], secret)
        if not keys.has_text(session, record["id"], key):
            raise Conflict(
                f"key {record['id']} was created by the first request, and its secret cannot be shown again: "
                "it or your own key was rotated since then; rotate it for a new secret"
            )
        return msgspec.json.encode(record | {"key": key})

    return run_once(session, idempotency_key, caller, request, body, create, with_secret)


@router.get("/v1/keys", dependencies=[require_scope("admin")], responses=problem_responses(422))
def list_keys(
    request: Request, response: Response, session: ReadDep, query: Annotated[PageQuery, Query()]
) -> ListResponse[KeyRecord]:
    """List all keys, also revoked ones, without their secrets."""
    page = keys.search(session, page_size=query.page_size, page_token=query.page_token)
    return list_response(page, KeyRecord.of, request, response)


@router.delete("/v1/keys/{id}", dependencies=[require_scope("admin")], responses=problem_responses(404, 422))
def revoke_key(id: KeyId, session: WriteDep) -> KeyRecord:
    """Revoke a key. It stays in the list."""
    return KeyRecord.of(keys.revoke(session, id))


@router.post(
    "/v1/keys/{id}/rotate",
    dependencies=[require_scope("admin")],
    responses=problem_responses(404, 422),
)
def rotate_key(id: KeyId, session: WriteDep) -> IssuedKey:
    """Replace the key's secret. The old one is rejected at once."""
    issued = keys.rotate(session, id)
    return IssuedKey(**KeyRecord.of(issued.row).model_dump(), key=issued.key)


def _secret(request: Request, idempotency_key: str | None) -> str:
    """Create a secret: random, or for an idempotent request derived from the sender's own key.

    A repeated request then derives the same secret, although it is not stored.
    """
    if idempotency_key is None:
        return secrets.token_urlsafe(32)
    sender = request.headers["authorization"].partition(" ")[2].strip()
    return hmac.new(sender.encode(), f"new key\n{idempotency_key}".encode(), hashlib.sha256).hexdigest()
