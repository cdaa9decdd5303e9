"""`/tuf/`: the signed documents and the files they name, where a TUF client looks for them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from registry import tuf_documents
from registry.errors import NotFound
from service.edge.rollout import exports_with_digest
from service.runtime.snapshot import SnapshotExport
from service.web.deps import ReadDep, ServicesDep, require_scope
from service.web.file_response import ConditionalFileResponse
from service.web.problems import problem_responses
from service.web.request_models import ModelName

router = APIRouter(tags=["edge"])

_DOCUMENT = re.compile(rf"(?:([1-9][0-9]{{0,8}})\.)?({'|'.join(tuf_documents.ROLES)})\.json")
_TARGET = re.compile(r"([0-9a-f]{64})\.[a-z0-9.]+\.tflite")
_FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "It is what the caller has already"},
}
FOR_EVER = "private, max-age=31536000, immutable"


@router.get(
    "/tuf/metadata/{file}",
    dependencies=[require_scope("edge")],
    response_class=Response,
    responses={
        200: {"content": {"application/json": {"schema": {"type": "object"}}}},
        **problem_responses(404, 422),
    },
)
def document(
    file: Annotated[str, Path(description="timestamp.json, or N.root.json, N.snapshot.json, N.targets.json")],
    session: ReadDep,
) -> Response:
    """A signed document, byte for byte as it was signed."""
    match = _DOCUMENT.fullmatch(file)
    if match is None:
        raise NotFound("TUF document", file)
    number, role = match.groups()
    if number is None:
        content = tuf_documents.newest(session, role)
        if content is None:
            raise NotFound("TUF document", file, "nothing has been exported yet")
        return Response(
            content, media_type="application/json", headers={"Cache-Control": "private, no-cache"}
        )
    kept = {"Cache-Control": FOR_EVER}
    return Response(
        tuf_documents.get(session, role, int(number)), media_type="application/json", headers=kept
    )


@router.get(
    "/tuf/targets/{name}/{alias}/{file}",
    dependencies=[require_scope("edge")],
    response_class=Response,
    responses=_FILE | problem_responses(404, 406, 412, 416, 422),
)
async def target(
    name: ModelName,
    alias: Annotated[str, Path(description="the alias")],
    file: Annotated[str, Path(description="SHA256.QUANTIZE.tflite, as a TUF client asks for it")],
    services: ServicesDep,
) -> Response:
    """A file that the signed documents name."""
    missing = NotFound("TUF target", f"{name}/{alias}/{file}")
    match = _TARGET.fullmatch(file)
    if match is None:
        raise missing

    def found() -> SnapshotExport:
        export = exports_with_digest(services.snapshot.state, match[1]).get(name)
        if export is None:
            raise missing
        return export

    export = await services.snapshot.find(found)
    headers = {"Content-Type": "application/octet-stream"}
    # Uncompressed: a TUF client counts the bytes against the signed length.
    return ConditionalFileResponse(
        services.store.path, export.sha256, None, validators={"Cache-Control": FOR_EVER}, headers=headers
    )
