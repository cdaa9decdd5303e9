"""Routes that devices poll: the manifest, the current file, and a file by its digest.

Everything but a manifest's report comes from the snapshot, without a database query.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from anyio.to_thread import run_sync
from fastapi import APIRouter, Path, Query, Request, Response

from registry import db, exports
from registry.artifacts import check_sha256
from registry.errors import NotFound
from service.edge.edge_schemas import DeviceId, EdgeQuery, Manifest, RuntimeVersion
from service.edge.rollout import exports_with_digest, select_export
from service.runtime.snapshot import SnapshotExport
from service.web.conditional import precondition_response
from service.web.deps import CallerDep, ServicesDep, require_scope
from service.web.file_response import ConditionalFileResponse, repr_digest
from service.web.problems import problem_responses
from service.web.request_models import ModelName
from service.web.services import Services

router = APIRouter(tags=["edge"])

MEDIA_TYPE = "application/octet-stream"  # no media type is registered for .tflite
REVALIDATE = {"Cache-Control": "private, no-cache"}
IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}
DEVICE_HEADERS = "X-Device-Id, X-Runtime-Version"  # for Vary: the request headers that select the file
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The client's copy is current"}}
_FILE: dict[str, Any] = {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
MANIFEST_RESPONSES = NOT_MODIFIED | problem_responses(404, 409, 412, 422)
FILE_RESPONSES = {
    200: {"description": "The file", **_FILE},
    206: {"description": "The range of the file that the request names", **_FILE},
    **NOT_MODIFIED,
    **problem_responses(404, 406, 409, 412, 416, 422),
}


@router.head(
    "/v1/edge/{name}",
    dependencies=[require_scope("edge")],
    response_class=Response,
    responses=MANIFEST_RESPONSES,
)
@router.get(
    "/v1/edge/{name}",
    dependencies=[require_scope("edge")],
    response_model=Manifest,
    responses=MANIFEST_RESPONSES,
)
async def manifest(
    name: ModelName,
    request: Request,
    services: ServicesDep,
    query: Annotated[EdgeQuery, Query()],
    x_device_id: DeviceId = None,
    x_runtime_version: RuntimeVersion = None,
) -> Response:
    """Describe the file that the device gets now. Poll it with `If-None-Match`: 304 until it changes."""
    export = await _find_export(services, name, query, x_device_id, x_runtime_version)
    etag = _manifest_etag(name, query.alias, export)
    headers = REVALIDATE | _version_headers(export) | {"ETag": etag, "Vary": DEVICE_HEADERS}
    if (short_response := precondition_response(request.scope, headers)) is not None:
        return short_response
    report = await run_sync(_report, services.sessions, name, export.version, export.id)
    body = Manifest.of(name, query.alias, export, report).model_dump_json().encode()
    headers |= {
        "Content-Length": str(len(body)),
        "Repr-Digest": repr_digest(hashlib.sha256(body).hexdigest()),
    }
    content = b"" if request.method == "HEAD" else body
    return Response(content, headers=headers, media_type="application/json")


@router.head(
    "/v1/edge/{name}/latest.tflite",
    dependencies=[require_scope("edge")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
@router.get(
    "/v1/edge/{name}/latest.tflite",
    dependencies=[require_scope("edge")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
async def latest_file(
    name: ModelName,
    services: ServicesDep,
    query: Annotated[EdgeQuery, Query()],
    x_device_id: DeviceId = None,
    x_runtime_version: RuntimeVersion = None,
) -> Response:
    """Send the file: conditional, resumable, and compressed if Accept-Encoding contains zstd."""
    export = await _find_export(services, name, query, x_device_id, x_runtime_version)
    return _file_response(services, name, export, REVALIDATE, f"Accept-Encoding, {DEVICE_HEADERS}")


@router.head(
    "/v1/blobs/{sha256}",
    dependencies=[require_scope("edge")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
@router.get(
    "/v1/blobs/{sha256}",
    dependencies=[require_scope("edge")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
async def blob(
    sha256: Annotated[str, Path(description="the file's sha256, 64 hex digits")],
    services: ServicesDep,
    caller: CallerDep,
) -> Response:
    """Send a file of a ready export by its digest. It never changes, so caches may keep it forever."""
    check_sha256(sha256)

    def find() -> tuple[str, SnapshotExport]:
        exports_by_model = exports_with_digest(services.snapshot.state, sha256)
        accessible = [name for name in exports_by_model if caller.reaches(name)]
        if not accessible:
            raise NotFound("ready export with sha256", sha256)
        name = min(accessible)
        return name, exports_by_model[name]

    name, export = await services.snapshot.find(find)
    return _file_response(services, name, export, IMMUTABLE, "Accept-Encoding")


async def _find_export(
    services: Services, name: str, query: EdgeQuery, device: str | None, runtime: str | None
) -> SnapshotExport:
    return await services.snapshot.find(
        lambda: select_export(services.snapshot.state, name, query.alias, query.quantize, device, runtime)
    )


def _file_response(
    services: Services, name: str, export: SnapshotExport, caching: dict[str, str], vary: str
) -> ConditionalFileResponse:
    suffix = "" if export.quantize == "none" else f"-{export.quantize}"
    return ConditionalFileResponse(
        services.store.verified_path,
        export.sha256,
        export.zstd,
        validators=caching | _version_headers(export) | {"Vary": vary},
        headers={
            "Content-Type": MEDIA_TYPE,
            "Content-Disposition": f'attachment; filename="{name}-{export.version}{suffix}.tflite"',
        },
    )


def _version_headers(export: SnapshotExport) -> dict[str, str]:
    """Build the headers that describe the export; a 304 has them, too."""
    headers = {"X-Model-Version": str(export.version), "X-Model-Sha256": export.sha256}
    return headers | ({"X-Min-Runtime": export.min_runtime} if export.min_runtime else {})


def _manifest_etag(name: str, alias: str, export: SnapshotExport) -> str:
    """Derive the manifest's entity tag. Its other fields follow from the export, which never changes."""
    identity = msgspec.json.encode((name, alias, export.id, export.version, export.sha256))
    return f'"{hashlib.sha256(identity).hexdigest()}"'


@lru_cache(maxsize=256)  # every device requests it after a promotion, and a ready export never changes
def _report(sessions: db.Sessions, name: str, version: int, export_id: int) -> dict[str, Any] | None:
    with db.reading(sessions) as session:
        return exports.get(session, name, version, export_id).report
