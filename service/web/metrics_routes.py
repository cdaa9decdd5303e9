"""Route of the Prometheus metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response

from service import telemetry
from service.web.deps import ServicesDep, require_scope
from service.web.health import update_gauges
from service.web.problems import problem_responses

router = APIRouter(tags=["operation"])


@router.get(
    "/metrics",
    dependencies=[require_scope("any")],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problem_responses()},
)
def metrics(services: ServicesDep) -> Response:
    """Return the metrics of all web processes as Prometheus text."""
    update_gauges(services)
    return Response(telemetry.metrics(), media_type=telemetry.METRICS_MEDIA_TYPE)
