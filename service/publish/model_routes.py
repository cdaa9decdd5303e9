"""Routes of models and versions: publish, search, edit, download and delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse

from registry import models, verification, versions
from registry.vocabulary import FORMAT_SUFFIXES
from service.publish.model_schemas import EditBody, ModelRecord, PublishBody, VerifyBody, VersionRecord
from service.web.deps import CallerDep, ReadDep, ServicesDep, WriteDep, require_scope
from service.web.idempotency import IdempotencyKey, IdempotentResult, run_once
from service.web.listing import ListResponse, SearchQuery, list_response
from service.web.problems import problem_responses
from service.web.request_models import ModelName, VersionNumber

router = APIRouter(tags=["models"])


@router.get("/v1/models", dependencies=[require_scope("any")], responses=problem_responses(422))
def list_models(
    request: Request,
    response: Response,
    session: ReadDep,
    caller: CallerDep,
    search: Annotated[SearchQuery, Query()],
) -> ListResponse[ModelRecord]:
    """List the models whose name contains `q` and that have a version with every `tag`, by name.

    A key that is limited to some models sees only those.
    """
    page = models.search(
        session,
        q=search.q,
        tags=search.tags(),
        names=caller.models,
        page_size=search.page_size,
        page_token=search.page_token,
    )
    return list_response(page, ModelRecord.of, request, response)


@router.get("/v1/models/{name}", dependencies=[require_scope("any")], responses=problem_responses(404, 422))
def get_model(name: ModelName, session: ReadDep) -> ModelRecord:
    """Return a model."""
    return ModelRecord.of(models.summary(session, name))


@router.delete(
    "/v1/models/{name}",
    dependencies=[require_scope("admin")],
    status_code=204,
    responses=problem_responses(404, 409, 422),
)
def delete_model(name: ModelName, session: WriteDep) -> None:
    """Delete a model with all its versions. Its aliases must be deleted first."""
    models.remove(session, name)


@router.post(
    "/v1/models/{name}/versions",
    dependencies=[require_scope("publish")],
    status_code=202,
    response_model=VersionRecord,
    responses=problem_responses(409, 413, 422),
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

    The build starts at once: poll `Location` until the state is no longer `building`.
    """

    def publish() -> IdempotentResult:
        new = versions.NewVersion(model=name, **body.model_dump())
        row = versions.publish(session, services.store, new, by=caller.name)
        return IdempotentResult(VersionRecord.of(row), 202, f"/v1/models/{name}/versions/{row.number}")

    return run_once(session, idempotency_key, caller, request, body, publish)


@router.get(
    "/v1/models/{name}/versions", dependencies=[require_scope("any")], responses=problem_responses(404, 422)
)
def list_versions(
    name: ModelName,
    request: Request,
    response: Response,
    session: ReadDep,
    search: Annotated[SearchQuery, Query()],
) -> ListResponse[VersionRecord]:
    """List the versions whose description contains `q` and that have every `tag`, newest first."""
    page = versions.search(
        session,
        name,
        q=search.q,
        tags=search.tags(),
        page_size=search.page_size,
        page_token=search.page_token,
    )
    return list_response(page, VersionRecord.of, request, response)


@router.get(
    "/v1/models/{name}/versions/{version}",
    dependencies=[require_scope("any")],
    responses=problem_responses(404, 422),
)
def get_version(name: ModelName, version: VersionNumber, session: ReadDep) -> VersionRecord:
    """Return a version."""
    return VersionRecord.of(versions.get(session, name, version))


@router.patch(
    "/v1/models/{name}/versions/{version}",
    dependencies=[require_scope("publish")],
    responses=problem_responses(404, 409, 413, 422),
)
def edit_version(name: ModelName, version: VersionNumber, body: EditBody, session: WriteDep) -> VersionRecord:
    """Replace the tags or the description, or archive or restore the version."""
    row = versions.edit(session, name, version, **body.model_dump(exclude_unset=True))
    return VersionRecord.of(row)


@router.post(
    "/v1/models/{name}/versions/{version}/verify",
    dependencies=[require_scope("publish")],
    status_code=202,
    responses=problem_responses(404, 409, 413, 422),
)
def verify_version(
    name: ModelName,
    version: VersionNumber,
    response: Response,
    session: WriteDep,
    caller: CallerDep,
    body: VerifyBody | None = None,
) -> VersionRecord:
    """Measure the version again on the rows of its build: poll `Location` while it is `pending`.

    If a runtime answers differently, `verification.fallback` is what answers instead, until the version is
    published again, archived, or its new answers are accepted. Exports that answer differently are rejected.
    """
    accept_by = caller.name if body is not None and body.accept else None
    row = verification.request(session, versions.get(session, name, version).id, accept_by=accept_by)
    response.headers["Location"] = f"/v1/models/{name}/versions/{version}"
    return VersionRecord.of(row)


@router.delete(
    "/v1/models/{name}/versions/{version}",
    dependencies=[require_scope("admin")],
    status_code=204,
    responses=problem_responses(404, 409, 422),
)
def delete_version(name: ModelName, version: VersionNumber, session: WriteDep) -> None:
    """Delete a version that no alias points to and no rollback requires. Its number is not reused."""
    versions.remove(session, name, version)


@router.get(
    "/v1/models/{name}/versions/{version}/artifact",
    dependencies=[require_scope("publish")],
    response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        **problem_responses(404, 422),
    },
)
def get_artifact(
    name: ModelName, version: VersionNumber, session: ReadDep, services: ServicesDep
) -> FileResponse:
    """Download the published file."""
    row = versions.get(session, name, version)
    return FileResponse(
        services.store.verified_path(row.artifact),
        media_type="application/octet-stream",
        filename=f"{name}-{version}{FORMAT_SUFFIXES[row.format][0]}",
    )
