"""`PUT /v1/artifacts/{sha256}`: bytes stream to disk and are hashed on the way."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.concurrency import run_in_threadpool

from registry.artifacts import check_sha256
from service.publish.schemas import ArtifactRecord
from service.web.deps import ServicesDep, require_scope
from service.web.problems import problem_responses

router = APIRouter(tags=["publish"])
WRITE_BYTES = 1 << 20  # gathered before a thread writes them: a hop per 64 KB chunk is too many


@router.put(
    "/v1/artifacts/{sha256}",
    dependencies=[require_scope("publish", "batch")],
    status_code=201,
    response_model=ArtifactRecord,
    responses={
        200: {"model": ArtifactRecord, "description": "it was already there"},
        **problem_responses(413, 422),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_artifact(
    sha256: Annotated[str, Path(description="of the bytes, 64 hex digits")],
    request: Request,
    response: Response,
    services: ServicesDep,
) -> ArtifactRecord:
    """Upload a file under its own digest."""
    check_sha256(sha256)
    with services.store.writer() as blob:
        waiting = bytearray()
        async for chunk in request.stream():
            waiting += chunk
            if len(waiting) >= WRITE_BYTES:
                await run_in_threadpool(blob.write, bytes(waiting))
                waiting.clear()
        blob.write(bytes(waiting))
        done = await run_in_threadpool(blob.commit, sha256)
    response.status_code = 201 if done.created else 200
    return ArtifactRecord(sha256=done.sha256, bytes=done.bytes)
