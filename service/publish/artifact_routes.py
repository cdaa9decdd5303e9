"""Route of uploads: the body is streamed to disk and hashed on the way."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.concurrency import run_in_threadpool

from registry.artifacts import check_sha256
from service.publish.model_schemas import ArtifactRecord
from service.web.deps import ServicesDep, require_scope
from service.web.problems import problem_responses

router = APIRouter(tags=["publish"])
WRITE_BYTES = 1 << 20
"""Buffered before a thread writes them: switching threads for each chunk of 64 KB would cost more."""


@router.put(
    "/v1/artifacts/{sha256}",
    dependencies=[require_scope("publish", "batch")],
    status_code=201,
    response_model=ArtifactRecord,
    responses={
        200: {"model": ArtifactRecord, "description": "The file was already stored"},
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
    sha256: Annotated[str, Path(description="the sha256 of the body, 64 hex digits")],
    request: Request,
    response: Response,
    services: ServicesDep,
) -> ArtifactRecord:
    """Upload a file under its digest."""
    check_sha256(sha256)
    with services.store.writer() as blob:
        buffer = bytearray()
        async for chunk in request.stream():
            buffer += chunk
            if len(buffer) >= WRITE_BYTES:
                await run_in_threadpool(blob.write, bytes(buffer))
                buffer.clear()
        blob.write(bytes(buffer))
        stored = await run_in_threadpool(blob.commit, sha256)
    response.status_code = 201 if stored.created else 200
    return ArtifactRecord(sha256=stored.sha256, bytes=stored.bytes)
