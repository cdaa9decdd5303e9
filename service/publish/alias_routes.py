"""Routes of aliases: promote, roll back, delete, and the history."""

from __future__ import annotations

from typing import Annotated

from anyio import from_thread
from fastapi import APIRouter, Path, Query, Request, Response

from registry import aliases, db, verification, versions
from registry.names import NAME_PATTERN
from registry.tables import VersionRow
from registry.vocabulary import READY
from service.publish.model_schemas import AliasRecord, MoveRecord, PromoteBody, RollbackBody
from service.web.deps import CallerDep, ReadDep, ServicesDep, WriteDep, require_scope, write_transaction
from service.web.listing import ListResponse, PageQuery, list_response
from service.web.problems import problem_responses
from service.web.request_models import ModelName, Timestamp
from service.web.services import Services

router = APIRouter(tags=["aliases"])
AliasName = Annotated[str, Path(description="champion, challenger, or any other name", pattern=NAME_PATTERN)]


class HistoryQuery(PageQuery):
    at: Annotated[
        Timestamp | None,
        Query(description="return the entry in force at this time", examples=["2026-03-03T12:00:00Z"]),
    ] = None


@router.put(
    "/v1/models/{name}/aliases/{alias}",
    dependencies=[require_scope("promote")],
    responses=problem_responses(404, 409, 413, 422, 503),
)
def promote(
    name: ModelName,
    alias: AliasName,
    body: PromoteBody,
    services: ServicesDep,
    caller: CallerDep,
) -> AliasRecord:
    """Point the alias at a `ready` version. It is loaded first, so that no request waits for it."""
    with db.reading(services.sessions) as session:
        version = versions.get(session, name, body.version)
    if version.state == READY:
        _load(services, version)
    with write_transaction(services) as session:
        row = aliases.promote(
            session,
            name,
            alias,
            body.version,
            by=caller.name,
            reason=body.reason,
            edge_percent=body.edge_percent,
        )
        return AliasRecord.of(name, row)


@router.post(
    "/v1/models/{name}/aliases/{alias}/rollback",
    dependencies=[require_scope("promote")],
    responses=problem_responses(404, 409, 413, 422, 503),
)
def rollback(
    name: ModelName,
    alias: AliasName,
    services: ServicesDep,
    caller: CallerDep,
    body: RollbackBody | None = None,
) -> AliasRecord:
    """Point the alias at its previous version. Repeated rollbacks go further back."""
    with db.reading(services.sessions) as session:
        target = aliases.rollback_target(session, aliases.get(session, name, alias))
    if target is not None:
        _load(services, target[1])
    with write_transaction(services) as session:
        reason = body.reason if body else None
        row = aliases.rollback(session, name, alias, by=caller.name, reason=reason)
        return AliasRecord.of(name, row)


@router.delete(
    "/v1/models/{name}/aliases/{alias}",
    dependencies=[require_scope("promote")],
    status_code=204,
    responses=problem_responses(404, 422),
)
def delete_alias(name: ModelName, alias: AliasName, session: WriteDep, caller: CallerDep) -> None:
    """Delete the alias. Its history is kept."""
    aliases.remove(session, name, alias, by=caller.name)


@router.get(
    "/v1/models/{name}/aliases/{alias}/history",
    dependencies=[require_scope("any")],
    response_model=ListResponse[MoveRecord] | MoveRecord,
    responses=problem_responses(404, 422),
)
def history(
    name: ModelName,
    alias: AliasName,
    request: Request,
    response: Response,
    session: ReadDep,
    query: Annotated[HistoryQuery, Query()],
) -> ListResponse[MoveRecord] | MoveRecord:
    """List every move, newest first; with `at`, return the one in force at that time."""
    if query.at is not None:
        return MoveRecord.of(aliases.event_at(session, name, alias, query.at))
    page = aliases.history(session, name, alias, page_size=query.page_size, page_token=query.page_token)
    return list_response(page, MoveRecord.of, request, response)


def _load(services: Services, version: VersionRow) -> None:
    """Load the version before the write transaction, which would block all other writers meanwhile.

    Raises `Unavailable` for a version that nothing serves, although it may still be in memory.
    """
    if version.fallback == "none":
        raise verification.refusal(version.model.name, version.number)
    from_thread.run(services.pool.get, version.id)
