"""What devices say of the versions that they run."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from registry import rollouts
from service.edge.schemas import CountsRecord, ReportBody, ReportRecord, Reports
from service.web.deps import CallerDep, ReadDep, WriteDep, require_scope
from service.web.idempotency import IdempotencyKey, IdempotentResult, run_once
from service.web.pages import PageQuery, list_response
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
def report(
    name: ModelName,
    body: ReportBody,
    request: Request,
    session: WriteDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """A device says whether a version works on it. When too many fail, the version's rollout stops."""

    def keep() -> IdempotentResult:
        return IdempotentResult(
            ReportRecord.of(rollouts.report(session, name, body.asked(), by=caller.name)), 201
        )

    return run_once(session, idempotency_key, caller, request, body, keep)


@router.get(PATH, dependencies=[require_scope("any")], responses=problem_responses(404, 422))
def list_reports(
    name: ModelName,
    request: Request,
    response: Response,
    session: ReadDep,
    query: Annotated[PageQuery, Query()],
) -> Reports:
    """Every report, newest first; `counts` has the newest word of each device, by version."""
    page = rollouts.search(session, name, page_size=query.page_size, page_token=query.page_token)
    items = list_response(page, ReportRecord.of, request, response)
    counts = [CountsRecord.of(c) for c in rollouts.counts(session, name)]
    return Reports(items=items.items, next_page_token=items.next_page_token, counts=counts)
