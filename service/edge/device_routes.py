"""What devices ask for: the manifest, the newest file, a file by its digest; found in the snapshot."""

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
from service.edge.rollout import export_for, holders
from service.edge.schemas import DeviceId, EdgeQuery, Manifest, RuntimeVersion
from service.runtime.snapshot import Export
from service.web.conditional import verdict
from service.web.deps import CallerDep, ServicesDep, guarded
from service.web.fields import ModelName
from service.web.file_response import Delivery, asked_by, condition_answer, repr_digest
from service.web.problem_documents import problems
from service.web.services import Services

router = APIRouter(tags=["edge"])

MEDIA_TYPE = "application/octet-stream"  # there is none for .tflite
LATEST = {"Cache-Control": "private, no-cache"}
FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable"}
FOR_DEVICE = "X-Device-Id, X-Runtime-Version"  # what else than the URL decides
_FILE: dict[str, Any] = {
    "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
}
_CONDITIONAL: dict[int | str, dict[str, Any]] = {304: {"description": "It is what the caller has already"}}
FILE_RESPONSES = {
    200: {"description": "The file", **_FILE},
    206: {"description": "The part of the file that Range names", **_FILE},
    **_CONDITIONAL,
    **problems(404, 406, 409, 412, 416, 422),
}


@router.head(
    "/v1/edge/{name}",
    dependencies=[guarded("edge")],
    response_class=Response,
    responses=_CONDITIONAL | problems(404, 409, 412, 422),
)
@router.get(
    "/v1/edge/{name}",
    dependencies=[guarded("edge")],
    response_model=Manifest,
    responses=_CONDITIONAL | problems(404, 409, 412, 422),
)
async def manifest(
    name: ModelName,
    request: Request,
    services: ServicesDep,
    query: Annotated[EdgeQuery, Query()],
    x_device_id: DeviceId = None,
    x_runtime_version: RuntimeVersion = None,
) -> Response:
    """Which file the device gets now. Poll it with `If-None-Match`: 304 until something changes."""
    export = await _newest(services, name, query, x_device_id, x_runtime_version)
    validators = LATEST | _validators(export) | {"ETag": _tag(name, query.alias, export), "Vary": FOR_DEVICE}
    if (status := verdict(asked_by(request), validators["ETag"])) is not None:
        return condition_answer(request.scope, status, validators)
    report = await run_sync(_report, services.sessions, name, export.version, export.id)
    body = Manifest.of(name, query.alias, export, report).model_dump_json().encode()
    headers = {
        **validators,
        "Content-Length": str(len(body)),
        "Repr-Digest": repr_digest(hashlib.sha256(body).hexdigest()),
    }
    content = b"" if request.method == "HEAD" else body
    return Response(content, headers=headers, media_type="application/json")


@router.head(
    "/v1/edge/{name}/latest.tflite",
    dependencies=[guarded("edge")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
@router.get(
    "/v1/edge/{name}/latest.tflite",
    dependencies=[guarded("edge")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
async def latest(
    name: ModelName,
    services: ServicesDep,
    query: Annotated[EdgeQuery, Query()],
    x_device_id: DeviceId = None,
    x_runtime_version: RuntimeVersion = None,
) -> Response:
    """The file itself: conditional, resumable, compressed for who accepts zstd."""
    export = await _newest(services, name, query, x_device_id, x_runtime_version)
    return _deliver(services, name, export, LATEST, f"Accept-Encoding, {FOR_DEVICE}")


@router.head(
    "/v1/blobs/{sha256}", dependencies=[guarded("edge")], response_class=Response, responses=FILE_RESPONSES
)
@router.get(
    "/v1/blobs/{sha256}", dependencies=[guarded("edge")], response_class=Response, responses=FILE_RESPONSES
)
async def blob(
    sha256: Annotated[str, Path(description="of the file, 64 hex digits")],
    services: ServicesDep,
    caller: CallerDep,
) -> Response:
    """A file by its digest: never another, so it may be kept for ever. Only files of ready exports."""
    check_sha256(sha256)

    def held() -> tuple[str, Export]:
        found = {n: e for n, e in holders(services.snapshot.state, sha256).items() if caller.reaches(n)}
        if not found:
            raise NotFound("ready export with sha256", sha256)
        name = min(found)
        return name, found[name]

    name, export = await services.snapshot.find(held)
    return _deliver(services, name, export, FOR_EVER, "Accept-Encoding")


async def _newest(
    services: Services, name: str, query: EdgeQuery, device: str | None, runtime: str | None
) -> Export:
    return await services.snapshot.find(
        lambda: export_for(services.snapshot.state, name, query.alias, query.quantize, device, runtime)
    )


def _deliver(services: Services, name: str, export: Export, caching: dict[str, str], vary: str) -> Delivery:
    quantized = "" if export.quantize == "none" else f"-{export.quantize}"
    filename = f"{name}-{export.version}{quantized}.tflite"
    return Delivery(
        services.store.path,
        export.sha256,
        export.zstd,
        validators=caching | _validators(export) | {"Vary": vary},
        headers={
            "Content-Type": MEDIA_TYPE,
            "Content-Disposition": f'attachment; filename="{filename}"',
        },
    )


def _validators(export: Export) -> dict[str, str]:
    """What a device wants to know also when it has the file."""
    headers = {"X-Model-Version": str(export.version), "X-Model-Sha256": export.sha256}
    return headers | ({"X-Min-Runtime": export.min_runtime} if export.min_runtime else {})


def _tag(name: str, alias: str, export: Export) -> str:
    """The manifest's entity tag. All else in it is the export's, and a ready export never changes."""
    said = msgspec.json.encode((name, alias, export.id, export.version, export.sha256))
    return f'"{hashlib.sha256(said).hexdigest()}"'


@lru_cache(maxsize=256)  # when a version is promoted every device asks, and a ready export never changes
def _report(sessions: db.Sessions, name: str, version: int, export_id: int) -> dict[str, Any] | None:
    with db.reading(sessions) as session:
        return exports.get(session, name, version, export_id).report
