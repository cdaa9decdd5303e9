"""Liveness and readiness probes, and the gauges of this process. Served before FastAPI is loaded."""

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

MIN_FREE_BYTES = 1 << 20
"""With less free space in the data directory the server is not ready."""

_reported_differing: set[tuple[str, str, str]] = set()
"""Labels of `DIFFERING_VERSIONS` that this process has set."""


def health_routes(services: Services) -> list[Route]:
    """Build the routes of the probes. All are public."""
    ready = partial(readyz, services)
    return [Route("/livez", livez), Route("/readyz", ready), Route("/healthz", ready)]


async def livez(_: Request) -> Response:
    """Respond with 200: the process is alive."""
    return JSONResponse({"status": "alive"})


def readyz(services: Services, _: Request) -> Response:
    """Respond with 200 when every check passes, else with 503; the body has the result of each check."""
    checks = run_checks(services)
    ready = all(result == "ok" for result in checks.values())
    return JSONResponse({"ready": ready, "checks": checks}, 200 if ready else 503)


def update_gauges(services: Services) -> None:
    """Set the gauges of this process. Each process sets its own: one of them answers for all."""
    for runtime, count in services.pool.count_by_runtime().items():
        telemetry.LOADED_MODELS.labels(runtime).set(count)
    telemetry.LOADED_BYTES.set(services.pool.bytes)
    telemetry.SNAPSHOT_AGE.set(services.snapshot.age_s)
    _update_differing(services)
    with db.reading(services.sessions) as session:
        telemetry.BUILD_QUEUE.set(queue.depth(session, SUPERVISOR_TASKS))


def _update_differing(services: Services) -> None:
    """Name the versions of which a runtime answers differently. Series of versions that agree again are 0."""
    differing = {
        (model.name, str(version.number), version.fallback)
        for model in services.snapshot.state.models.values()
        for version in model.versions.values()
        if version.fallback is not None
    }
    for labels in differing | _reported_differing:
        telemetry.DIFFERING_VERSIONS.labels(*labels).set(labels in differing)
    _reported_differing.update(differing)


def run_checks(services: Services) -> dict[str, str]:
    """Return the result of each readiness check, "ok" or what is wrong."""
    checks = {}
    try:
        current = db.is_current(services.engine)
        checks["database"] = "ok"
        checks["migrations"] = "ok" if current else "not current: run `trivium migrate`"
    except SQLAlchemyError as error:
        checks["database"] = f"does not answer: {type(error).__name__}"
    age = services.snapshot.age_s
    checks["snapshot"] = (
        "ok" if age < STALE_S else f"the last successful read of the registry is {age:.0f} s old"
    )
    checks["builder"] = services.supervisor.forks.problem() or services.group.builder_problem or "ok"
    checks["data"] = _check_data_directory(services.store.incoming)
    return checks


def _check_data_directory(incoming: Path) -> str:
    """Check that uploads can be stored."""
    try:
        filesystem = os.statvfs(incoming)
    except OSError as error:
        return f"the data directory cannot be used: {error.strerror}"
    if not os.access(incoming, os.W_OK) or filesystem.f_flag & os.ST_RDONLY:
        return "the data directory is read-only"
    free = filesystem.f_bavail * filesystem.f_frsize
    return "ok" if free >= MIN_FREE_BYTES else "the disk of the data directory is full"
