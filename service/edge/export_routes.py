"""Routes of exports: convert a version to .tflite, and read the results."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BeforeValidator, Field

from registry import exports
from service.edge.edge_schemas import ExportBody, ExportRecord
from service.web.deps import CallerDep, ReadDep, ServicesDep, WriteDep, require_scope
from service.web.idempotency import IdempotencyKey, IdempotentResult, run_once
from service.web.listing import ListResponse, PageQuery, list_response
from service.web.problems import problem_responses
from service.web.request_models import MAX_NUMBER, ModelName, VersionNumber, require_digits

router = APIRouter(tags=["edge"])
PATH = "/v1/models/{name}/versions/{version}/exports"
ExportId = Annotated[
    int,
    Field(ge=1, le=MAX_NUMBER),
    BeforeValidator(require_digits),
    Path(description="the export's id"),
]


@router.post(
    PATH,
    dependencies=[require_scope("publish")],
    status_code=202,
    response_model=ExportRecord,
    responses=problem_responses(404, 409, 413, 422),
)
def export_version(
    name: ModelName,
    version: VersionNumber,
    body: ExportBody,
    request: Request,
    session: WriteDep,
    services: ServicesDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Convert a ready version to .tflite and compare its predictions with the version's.

    It starts at once: poll `Location` until the state is no longer `building`. An export outside the bounds
    of the request is `rejected` and not available to devices.
    """

    def export() -> IdempotentResult:
        row = exports.create(session, services.store, name, version, body.to_new_export(), by=caller.name)
        return IdempotentResult(
            ExportRecord.of(row), 202, f"/v1/models/{name}/versions/{version}/exports/{row.id}"
        )

    return run_once(session, idempotency_key, caller, request, body, export)


@router.get(PATH, dependencies=[require_scope("any")], responses=problem_responses(404, 422))
def list_exports(
    name: ModelName,
    version: VersionNumber,
    request: Request,
    response: Response,
    session: ReadDep,
    query: Annotated[PageQuery, Query()],
) -> ListResponse[ExportRecord]:
    """List the version's exports, newest first."""
    page = exports.search(session, name, version, page_size=query.page_size, page_token=query.page_token)
    return list_response(page, ExportRecord.of, request, response)


@router.get(PATH + "/{export_id}", dependencies=[require_scope("any")], responses=problem_responses(404, 422))
def get_export(
    name: ModelName, version: VersionNumber, export_id: ExportId, session: ReadDep
) -> ExportRecord:
    """Return an export, with its report on parity, size and speed."""
    return ExportRecord.of(exports.get(session, name, version, export_id))
