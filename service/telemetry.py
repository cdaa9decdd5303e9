"""Logs and metrics. JSON lines on stderr, pretty on a terminal; Prometheus figures in this process.

With several web processes `PROMETHEUS_MULTIPROC_DIR` is set before they start, and one scrape answers
for all of them.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import sys
from functools import cache
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from prometheus_client.registry import REGISTRY

from service import startup

with startup.hidden("rich"):  # structlog would import it for coloured tracebacks, which are not used here
    import structlog
    from structlog.tracebacks import ExceptionDictTransformer

REQUESTS = Counter("trivium_requests_total", "HTTP requests", ["route", "method", "status"])
REQUEST_SECONDS = Histogram("trivium_request_seconds", "Time to answer an HTTP request", ["route"])
PREDICT_SECONDS = Histogram(
    "trivium_predict_seconds",
    "Time from a whole predict request to its answer",
    ["model", "version", "runtime"],
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
PREDICTED_ROWS = Counter("trivium_predicted_rows_total", "Rows predicted", ["model", "version", "runtime"])
BUILDS = Counter("trivium_builds_total", "Builds by what came of them", ["state", "runtime"])
BUILD_SECONDS = Histogram(
    "trivium_build_seconds", "Time a build took", buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
)
EXPORTS = Counter("trivium_exports_total", "Exports by what came of them", ["state"])
EXPORT_SECONDS = Histogram(
    "trivium_export_seconds", "Time an export took", buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
)
FALLBACKS = Counter(
    "trivium_runtime_fallbacks_total",
    "Versions that are served by the isolated runtime because ONNX could not take them",
    ["model"],
)
LOADED_MODELS = Gauge(
    "trivium_loaded_models", "Model versions in memory", ["runtime"], multiprocess_mode="livesum"
)
LOADED_BYTES = Gauge("trivium_loaded_model_bytes", "Memory of loaded models", multiprocess_mode="livesum")
EVICTIONS = Counter("trivium_model_evictions_total", "Models dropped from memory to stay in the bound")
CHILD_RESTARTS = Counter(
    "trivium_child_restarts_total", "Child processes that died and were replaced", ["kind"]
)
SNAPSHOT_AGE = Gauge(
    "trivium_snapshot_age_seconds",
    "Seconds since the registry was last looked at",
    multiprocess_mode="livemax",
)
BUILD_QUEUE = Gauge(
    "trivium_build_queue_depth", "Builds and exports waiting or running", multiprocess_mode="livemostrecent"
)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ids = itertools.count(1)
_prefix = secrets.token_hex(5)


def make_id(kind: str) -> str:
    """A new identifier such as `req-5f1c0a9b3e-1a`: unique per process start, cheap to make (a uuid4
    costs half as much as a whole small prediction)."""
    return f"{kind}-{_prefix}-{next(_ids):x}"


def reseed_ids() -> None:
    """Give this process identifiers of its own; for use after a fork."""
    global _prefix
    _prefix = secrets.token_hex(5)


@cache
def _request_children(route: str, method: str, status: int) -> tuple[Counter, Histogram]:
    return REQUESTS.labels(route, method, str(status)), REQUEST_SECONDS.labels(route)


def count_request(route: str, method: str, status: int, seconds: float) -> None:
    """`route` must be a template, not a path: every one is a time series."""
    counter, histogram = _request_children(route, method if method in METHODS else "other", status)
    counter.inc()
    histogram.observe(seconds)


def metrics() -> bytes:
    """The Prometheus text of this process, or of all web processes where there are several."""
    registry: CollectorRegistry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def configure_logging(level: int = logging.INFO) -> None:
    """JSON lines on stderr, or colours when a person is looking. The libraries' logs join in."""
    pretty = sys.stderr.isatty()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[Any] = (
        [structlog.dev.ConsoleRenderer()]
        if pretty
        else [
            # without the frames' variables: among them are callers' keys
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"  # requests are logged by the guard


def logger(name: str) -> Any:
    """A structured logger: `log.info("build.done", model="fraud", version=3)`."""
    return structlog.stdlib.get_logger(name)
