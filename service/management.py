"""The FastAPI application: every route except predictions, probes and docs pages.

It is imported in a thread while the server already answers (`web/lazy_app.py`). No module on the way to
`/readyz` or to a prediction may import this module, FastAPI, or a module that contains an `APIRouter`.
"""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI

from service.batch import job_routes, schedule_routes
from service.edge import device_routes, export_routes, report_routes, tuf_routes
from service.online import inference_routes, prediction_log_routes
from service.publish import alias_routes, artifact_routes, key_routes, model_routes, traffic_routes
from service.web import metrics_routes, openapi_routes
from service.web.deps import check_guarded
from service.web.problems import install_handlers
from service.web.services import Services

PUBLISH = (artifact_routes, model_routes, alias_routes, traffic_routes, key_routes)
ONLINE = (inference_routes, prediction_log_routes)
BATCH = (job_routes, schedule_routes)
EDGE = (export_routes, device_routes, report_routes, tuf_routes)
OPERATION = (openapi_routes, metrics_routes)


def create_management(services: Services) -> FastAPI:
    """Build the application. Raises `RuntimeError` when a route requires no scope."""
    app = FastAPI(
        title="Trivium",
        version=version("trivium"),
        description="A model registry and inference server: online predictions, batch jobs, edge delivery.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    for module in (*PUBLISH, *ONLINE, *BATCH, *EDGE, *OPERATION):
        app.router.routes.extend(module.router.routes)  # one flat list, which `check_guarded` iterates over
    install_handlers(app)
    check_guarded(app)
    return app
