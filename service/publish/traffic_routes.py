"""Routes of an alias's traffic: split its calls over versions, and let a shadow answer too."""

from __future__ import annotations

from anyio import from_thread
from fastapi import APIRouter
from sqlalchemy.orm import Session

from registry import db, traffic, versions
from registry.errors import NotFound
from registry.traffic import NewTraffic
from registry.vocabulary import READY
from service.publish.alias_routes import AliasName
from service.publish.model_schemas import TrafficBody, TrafficRecord
from service.web.deps import CallerDep, ReadDep, ServicesDep, WriteDep, require_scope, write_transaction
from service.web.problems import problem_responses
from service.web.request_models import ModelName
from service.web.services import Services

router = APIRouter(tags=["aliases"])
PATH = "/v1/models/{name}/aliases/{alias}/traffic"


@router.put(
    PATH, dependencies=[require_scope("promote")], responses=problem_responses(404, 409, 413, 422, 503)
)
def put_traffic(
    name: ModelName, alias: AliasName, body: TrafficBody, services: ServicesDep, caller: CallerDep
) -> TrafficRecord:
    """Split the alias's predict calls over versions by weight, and let a shadow answer them too.

    A version of the split other than the alias's own is a canary: when it passes one of the `bounds`, its
    weight returns to the alias's version. Jobs and devices get the alias's version. The versions are loaded
    first. Promoting, rolling back and deleting the alias end its traffic.
    """
    bounds = body.bounds
    new = NewTraffic(
        None if body.weights is None else {int(number): share for number, share in body.weights.items()},
        body.sticky_header,
        None if bounds is None else bounds.error_rate,
        None if bounds is None else bounds.p99_ms,
        body.shadow,
    )
    _load(services, name, [number for number, percent in (new.weights or {}).items() if percent])
    with write_transaction(services) as session:
        traffic.put(session, name, alias, new, by=caller.name, reason=body.reason)
        return _record(session, name, alias)


@router.get(PATH, dependencies=[require_scope("promote")], responses=problem_responses(404, 422))
def get_traffic(name: ModelName, alias: AliasName, session: ReadDep) -> TrafficRecord:
    """Return how the alias's calls are split, and the comparison of its newest shadow.

    An alias without traffic has one weight of 100. The figures of the shadow are up to 5 seconds old.
    """
    return _record(session, name, alias)


@router.delete(
    PATH,
    dependencies=[require_scope("promote")],
    status_code=204,
    responses=problem_responses(404, 422),
)
def delete_traffic(name: ModelName, alias: AliasName, session: WriteDep, caller: CallerDep) -> None:
    """End the traffic: the alias's version answers every call, and no shadow does."""
    traffic.end(session, name, alias, by=caller.name)


def _record(session: Session, name: str, alias: str) -> TrafficRecord:
    return TrafficRecord.of(name, traffic.get(session, name, alias), traffic.results(session, name, alias))


def _load(services: Services, name: str, numbers: list[int]) -> None:
    """Load the versions before the write transaction, which reports those that do not exist."""
    version_ids = []
    with db.reading(services.sessions) as session:
        for number in numbers:
            try:
                version = versions.get(session, name, number)
            except NotFound:
                continue
            if version.state == READY:
                version_ids.append(version.id)
    for version_id in version_ids:
        from_thread.run(services.pool.get, version_id)
