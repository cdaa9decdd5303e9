"""Is it alive, is it ready, and what this process holds. Answers before there is a FastAPI."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from registry import db, queue
from registry.vocabulary import SUPERVISOR_TASKS
from service import telemetry
from service.runtime.snapshot import STALE_S
from service.web.services import Services

LEAST_FREE = 1 << 20
"""Bytes: with less, nothing that is worth it can be kept."""


def health_routes(services: Services) -> list[Route]:
    """The probes; none of them asks for a key."""
    ready = partial(readyz, services)
    return [Route("/livez", livez), Route("/readyz", ready), Route("/healthz", ready)]


async def livez(_: Request) -> Response:
    """The process answers."""
    return JSONResponse({"status": "alive"})


def readyz(services: Services, _: Request) -> Response:
    """It can serve: the database answers and is migrated, the snapshot is fresh, the builder works."""
    checks = _checks(services)
    ready = all(found == "ok" for found in checks.values())
    return JSONResponse({"ready": ready, "checks": checks}, 200 if ready else 503)


def note_gauges(services: Services) -> None:
    """What this process holds, as of now: a scrape is answered by one of several processes, for all."""
    for kind, count in services.pool.count_by_runtime().items():
        telemetry.LOADED_MODELS.labels(kind).set(count)
    telemetry.LOADED_BYTES.set(services.pool.bytes)
    telemetry.SNAPSHOT_AGE.set(services.snapshot.age_s)
    with db.reading(services.sessions) as session:
        telemetry.BUILD_QUEUE.set(queue.depth(session, SUPERVISOR_TASKS))


def _checks(services: Services) -> dict[str, str]:
    checks = {}
    try:
        current = db.is_current(services.engine)
        checks["database"] = "ok"
        checks["migrations"] = "ok" if current else "not current: run `trivium migrate`"
    except SQLAlchemyError as error:
        checks["database"] = f"does not answer: {type(error).__name__}"
    age = services.snapshot.age_s
    checks["snapshot"] = "ok" if age < STALE_S else f"the registry was last seen {age:.0f} s ago"
    checks["builder"] = services.supervisor.problem() or "ok"
    checks["data"] = _data(services.store.incoming)
    return checks


def _data(place: Path) -> str:
    """Whether what is uploaded could be kept."""
    try:
        space = os.statvfs(place)
    except OSError as error:
        return f"the data directory cannot be used: {error.strerror}"
    if not os.access(place, os.W_OK) or space.f_flag & os.ST_RDONLY:
        return "the data directory is read-only"
    return "ok" if space.f_bavail * space.f_frsize >= LEAST_FREE else "the disk of the data directory is full"
