"""Ask for a version as a .tflite file, and see what came of it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BeforeValidator

from registry import exports
from service.edge.schemas import ExportBody, ExportRecord
from service.web.deps import CallerDep, ReadDep, ServicesDep, WriteDep, guarded
from service.web.fields import MAX_NUMBER, ModelName, Number, digits
from service.web.idempotency import Done, IdempotencyKey, once
from service.web.pages import Listed, PageQuery, listed
from service.web.problem_documents import problems

router = APIRouter(tags=["edge"])
PATH = "/v1/models/{name}/versions/{version}/exports"
ExportId = Annotated[int, BeforeValidator(digits), Path(ge=1, le=MAX_NUMBER, description="the export's id")]


@router.post(
    PATH,
    dependencies=[guarded("publish")],
    status_code=202,
    response_model=ExportRecord,
    responses=problems(404, 409, 413, 422),
)
def export_version(
    name: ModelName,
    version: Number,
    body: ExportBody,
    request: Request,
    session: WriteDep,
    services: ServicesDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Write a version that is ready as .tflite and compare the two.

    It starts at once: ask `Location` until the state is no longer `building`. An export outside the bounds
    that are given here is `rejected`, and devices never see it.
    """

    def export() -> Done:
        row = exports.create(session, services.store, name, version, body.asked(), by=caller.name)
        return Done(ExportRecord.of(row), 202, f"/v1/models/{name}/versions/{version}/exports/{row.id}")

    return once(session, idempotency_key, caller, request, body, export)


@router.get(PATH, dependencies=[guarded("any")], responses=problems(404, 422))
def list_exports(
    name: ModelName,
    version: Number,
    request: Request,
    response: Response,
    session: ReadDep,
    query: Annotated[PageQuery, Query()],
) -> Listed[ExportRecord]:
    """The version's exports, newest first."""
    page = exports.search(session, name, version, page_size=query.page_size, page_token=query.page_token)
    return listed(page, ExportRecord.of, request, response)


@router.get(PATH + "/{export_id}", dependencies=[guarded("any")], responses=problems(404, 422))
def get_export(name: ModelName, version: Number, export_id: ExportId, session: ReadDep) -> ExportRecord:
    """One export, with its report: how often the two agree, how large and how fast it is."""
    return ExportRecord.of(exports.get(session, name, version, export_id))
