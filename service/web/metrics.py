"""The figures, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Response

from service import telemetry
from service.web.deps import ServicesDep, guarded
from service.web.health import note_gauges
from service.web.problem_documents import problems

router = APIRouter(tags=["operation"])


@router.get(
    "/metrics",
    dependencies=[guarded("any")],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems()},
)
def metrics(services: ServicesDep) -> Response:
    """Prometheus text."""
    note_gauges(services)
    return Response(telemetry.metrics(), media_type=telemetry.METRICS_TYPE)
