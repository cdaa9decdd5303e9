"""Every route but predictions, probes and docs pages: the FastAPI application that stands behind them.

Imported in a thread while the server already answers (`web/late`): nothing on the way to `/readyz` or to
a prediction may import this module, FastAPI, or a module with a router in it.
"""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI

from service.batch import job_routes as batch_routes
from service.batch import schedule_routes
from service.edge import device_routes as edge_routes
from service.edge import export_routes, report_routes, tuf_routes
from service.publish import alias_routes, artifact_routes, key_routes, model_routes
from service.web import metrics_routes, openapi_routes, problems
from service.web.deps import check_guarded
from service.web.services import Services

PUBLISH = (artifact_routes, model_routes, alias_routes, key_routes)
EDGE = (export_routes, edge_routes, report_routes, tuf_routes)
BATCH = (batch_routes, schedule_routes)
OPERATION = (openapi_routes, metrics_routes)


def management(services: Services) -> FastAPI:
    """Raises `RuntimeError` when a route says no scope."""
    app = FastAPI(
        title="Trivium",
        version=version("trivium"),
        description="One registry, three roads: online predictions, batch scoring, edge delivery.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    for room in (*PUBLISH, *BATCH, *EDGE, *OPERATION):
        app.router.routes.extend(room.router.routes)  # one flat list, which `check_guarded` reads to the end
    problems.install_handlers(app)
    check_guarded(app)
    return app
