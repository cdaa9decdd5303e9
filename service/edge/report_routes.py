"""Routes of the reports that devices send about the versions they run."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from registry import rollouts
from service.edge.edge_schemas import CountsRecord, ReportBody, ReportList, ReportRecord
from service.web.deps import CallerDep, ReadDep, WriteDep, require_scope
from service.web.idempotency import IdempotencyKey, IdempotentResult, run_once
from service.web.listing import PageQuery, list_response
from service.web.problems import problem_responses
from service.web.request_models import ModelName

router = APIRouter(tags=["edge"])
PATH = "/v1/edge/{name}/reports"


@router.post(
    PATH,
    dependencies=[require_scope("edge")],
    status_code=201,
    response_model=ReportRecord,
    responses=problem_responses(404, 409, 413, 422),
)
def create_report(
    name: ModelName,
    body: ReportBody,
    request: Request,
    session: WriteDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Report whether a version works on a device. When too many devices fail, the rollout is halted."""

    def store() -> IdempotentResult:
        row = rollouts.report(session, name, body.to_new_report(), by=caller.name)
        return IdempotentResult(ReportRecord.of(row), 201)

    return run_once(session, idempotency_key, caller, request, body, store)


@router.get(PATH, dependencies=[require_scope("any")], responses=problem_responses(404, 422))
def list_reports(
    name: ModelName,
    request: Request,
    response: Response,
    session: ReadDep,
    query: Annotated[PageQuery, Query()],
) -> ReportList:
    """List all reports, newest first. `counts` has the devices by version and their latest status."""
    page = rollouts.search(session, name, page_size=query.page_size, page_token=query.page_token)
    reports = list_response(page, ReportRecord.of, request, response)
    counts = [CountsRecord.of(c) for c in rollouts.counts(session, name)]
    return ReportList(items=reports.items, next_page_token=reports.next_page_token, counts=counts)
