"""Publish, find, edit and delete models and versions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse

from registry import models, versions
from service.publish.schemas import EditBody, ModelRecord, PublishBody, VersionRecord
from service.web.deps import CallerDep, ReadDep, ServicesDep, WriteDep, guarded
from service.web.fields import ModelName, Number
from service.web.idempotency import Done, IdempotencyKey, once
from service.web.pages import Listed, SearchQuery, listed
from service.web.problem_documents import problems

router = APIRouter(tags=["models"])
SUFFIXES = {"sklearn-joblib": ".joblib", "onnx": ".onnx", "keras": ".keras", "tflite": ".tflite"}


@router.get("/v1/models", dependencies=[guarded("any")], responses=problems(422))
def list_models(
    request: Request,
    response: Response,
    session: ReadDep,
    caller: CallerDep,
    search: Annotated[SearchQuery, Query()],
) -> Listed[ModelRecord]:
    """Models by name: those whose name holds `q` and that have a version with every `tag`.

    A key for some models sees only those.
    """
    page = models.search(
        session,
        q=search.q,
        tags=search.tags(),
        among=caller.models,
        page_size=search.page_size,
        page_token=search.page_token,
    )
    return listed(page, ModelRecord.of, request, response)


@router.get("/v1/models/{name}", dependencies=[guarded("any")], responses=problems(404, 422))
def get_model(name: ModelName, session: ReadDep) -> ModelRecord:
    return ModelRecord.of(models.summary(session, name))


@router.delete(
    "/v1/models/{name}", dependencies=[guarded("admin")], status_code=204, responses=problems(404, 409, 422)
)
def delete_model(name: ModelName, session: WriteDep) -> None:
    """Delete a model with all its versions. Its aliases must be deleted before."""
    models.remove(session, name)


@router.post(
    "/v1/models/{name}/versions",
    dependencies=[guarded("publish")],
    status_code=202,
    response_model=VersionRecord,
    responses=problems(409, 413, 422),
)
def publish_version(
    name: ModelName,
    body: PublishBody,
    request: Request,
    session: WriteDep,
    services: ServicesDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Publish an uploaded artifact as the model's next version.

    Its build starts at once: ask `Location` until the state is no longer `building`.
    """

    def publish() -> Done:
        new = versions.NewVersion(model=name, **body.model_dump())
        row = versions.publish(session, services.store, new, by=caller.name)
        return Done(VersionRecord.of(row), 202, f"/v1/models/{name}/versions/{row.number}")

    return once(session, idempotency_key, caller, request, body, publish)


@router.get("/v1/models/{name}/versions", dependencies=[guarded("any")], responses=problems(404, 422))
def list_versions(
    name: ModelName,
    request: Request,
    response: Response,
    session: ReadDep,
    search: Annotated[SearchQuery, Query()],
) -> Listed[VersionRecord]:
    """The model's versions, newest first: those whose description holds `q` and that carry every `tag`."""
    page = versions.search(
        session,
        name,
        q=search.q,
        tags=search.tags(),
        page_size=search.page_size,
        page_token=search.page_token,
    )
    return listed(page, VersionRecord.of, request, response)


@router.get(
    "/v1/models/{name}/versions/{version}", dependencies=[guarded("any")], responses=problems(404, 422)
)
def get_version(name: ModelName, version: Number, session: ReadDep) -> VersionRecord:
    return VersionRecord.of(versions.get(session, name, version))


@router.patch(
    "/v1/models/{name}/versions/{version}",
    dependencies=[guarded("publish")],
    responses=problems(404, 409, 413, 422),
)
def edit_version(name: ModelName, version: Number, body: EditBody, session: WriteDep) -> VersionRecord:
    """Replace the tags or the description; archive a version, or bring it back."""
    row = versions.edit(session, name, version, **body.model_dump(exclude_unset=True))
    return VersionRecord.of(row)


@router.delete(
    "/v1/models/{name}/versions/{version}",
    dependencies=[guarded("admin")],
    status_code=204,
    responses=problems(404, 409, 422),
)
def delete_version(name: ModelName, version: Number, session: WriteDep) -> None:
    """Delete a version that no alias and no rollback needs. Its number is not used again."""
    versions.remove(session, name, version)


@router.get(
    "/v1/models/{name}/versions/{version}/artifact",
    dependencies=[guarded("publish")],
    response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        **problems(404, 422),
    },
)
def get_artifact(name: ModelName, version: Number, session: ReadDep, services: ServicesDep) -> FileResponse:
    """The published file itself."""
    row = versions.get(session, name, version)
    return FileResponse(
        services.store.path(row.artifact),
        media_type="application/octet-stream",
        filename=f"{name}-{version}{SUFFIXES[row.format]}",
    )
