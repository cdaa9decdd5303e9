"""Routes under `/tuf/`: the signed documents and the files they list, at the paths that TUF clients use."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from registry import tuf_documents
from registry.errors import NotFound
from registry.vocabulary import QUANTIZE_MODES
from service.edge.device_routes import IMMUTABLE, MEDIA_TYPE, NOT_MODIFIED, REVALIDATE
from service.edge.rollout import exports_with_digest
from service.runtime.snapshot import SnapshotExport
from service.web.deps import ReadDep, ServicesDep, require_scope
from service.web.file_response import ConditionalFileResponse
from service.web.problems import problem_responses
from service.web.request_models import ModelName

router = APIRouter(tags=["edge"])

_DOCUMENT = re.compile(rf"(?:([1-9][0-9]{{0,8}})\.)?({'|'.join(tuf_documents.ROLES)})\.json")
_TARGET = re.compile(rf"([0-9a-f]{{64}})\.(?:{'|'.join(QUANTIZE_MODES)})(?:\.[a-z0-9.]+)?\.tflite")
_FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
    **NOT_MODIFIED,
    **problem_responses(404, 406, 412, 416, 422),
}


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
    """Return a signed document, byte for byte as it was signed."""
    match = _DOCUMENT.fullmatch(file)
    if match is None:
        raise NotFound("TUF document", file)
    number, role = match.groups()
    if number is not None:
        content = tuf_documents.get(session, role, int(number))
        return Response(content, media_type="application/json", headers=IMMUTABLE)
    newest = tuf_documents.newest(session, role)
    if newest is None:
        raise NotFound("TUF document", file, "nothing has been exported yet")
    return Response(newest, media_type="application/json", headers=REVALIDATE)


@router.get(
    "/tuf/targets/{name}/{alias}/{file}",
    dependencies=[require_scope("edge")],
    response_class=Response,
    responses=_FILE_RESPONSES,
)
async def target(
    name: ModelName,
    alias: Annotated[str, Path(description="the alias")],
    file: Annotated[str, Path(description="SHA256.QUANTIZE.tflite, as TUF clients request it")],
    services: ServicesDep,
) -> Response:
    """Send a file that the signed documents list."""
    not_found = NotFound("TUF target", f"{name}/{alias}/{file}")
    match = _TARGET.fullmatch(file)
    if match is None:
        raise not_found

    def find() -> SnapshotExport:
        export = exports_with_digest(services.snapshot.state, match[1]).get(name)
        if export is None:
            raise not_found
        return export

    export = await services.snapshot.find(find)
    # never compressed: TUF clients compare the length of the body with the signed length
    return ConditionalFileResponse(
        services.store.verified_path,
        export.sha256,
        None,
        validators=IMMUTABLE,
        headers={"Content-Type": MEDIA_TYPE},
    )
