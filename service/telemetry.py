"""Logs and metrics: JSON lines on stderr (colours on a terminal), and Prometheus metrics.

With several web processes, `PROMETHEUS_MULTIPROC_DIR` is set before they start, and one scrape returns the
metrics of all of them.
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
    "Time from a complete predict request to its response",
    ["model", "version", "runtime"],
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
PREDICTED_ROWS = Counter("trivium_predicted_rows_total", "Rows predicted", ["model", "version", "runtime"])
BUILDS = Counter("trivium_builds_total", "Finished builds by state", ["state", "runtime"])
BUILD_SECONDS = Histogram(
    "trivium_build_seconds", "Duration of a build", buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
)
EXPORTS = Counter("trivium_exports_total", "Finished exports by state", ["state"])
EXPORT_SECONDS = Histogram(
    "trivium_export_seconds",
    "Duration of an export",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600),
)
CHECKS = Counter("trivium_checks_total", "Checks of versions after a library changed, by result", ["state"])
DIFFERING_VERSIONS = Gauge(
    "trivium_differing_version",
    "1 for a version of which a runtime no longer gives the measured answers; fallback answers instead",
    ["model", "version", "fallback"],
    multiprocess_mode="livemostrecent",
)
FALLBACKS = Counter(
    "trivium_runtime_fallbacks_total",
    "Versions served by the isolated runtime because they were not converted",
    ["model"],
)
LOADED_MODELS = Gauge(
    "trivium_loaded_models", "Model versions in memory", ["runtime"], multiprocess_mode="livesum"
)
LOADED_BYTES = Gauge(
    "trivium_loaded_model_bytes", "Memory of loaded models in bytes", multiprocess_mode="livesum"
)
EVICTIONS = Counter("trivium_model_evictions_total", "Models evicted from memory to stay within the limit")
CHILD_RESTARTS = Counter(
    "trivium_child_restarts_total", "Child processes that died and were replaced", ["kind"]
)
SNAPSHOT_AGE = Gauge(
    "trivium_snapshot_age_seconds",
    "Seconds since the registry's revision was last checked",
    multiprocess_mode="livemax",
)
BUILD_QUEUE = Gauge(
    "trivium_build_queue_depth",
    "Builds, exports and checks that are queued or running",
    multiprocess_mode="livemostrecent",
)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ids = itertools.count(1)
_prefix = secrets.token_hex(5)


def make_id(kind: str) -> str:
    """Create an identifier such as `req-5f1c0a9b3e-1a`, unique per start of the process.

    It is cheap: a uuid4 would take half the time of a small prediction.
    """
    return f"{kind}-{_prefix}-{next(_ids):x}"


@cache
def _request_metrics(route: str, method: str, status: int) -> tuple[Counter, Histogram]:
    return REQUESTS.labels(route, method, str(status)), REQUEST_SECONDS.labels(route)


def count_request(route: str, method: str, status: int, seconds: float) -> None:
    """Count a request. `route` must be a template, not a path: each value creates a time series."""
    counter, histogram = _request_metrics(route, method if method in METHODS else "other", status)
    counter.inc()
    histogram.observe(seconds)


def metrics() -> bytes:
    """Return the metrics in Prometheus' text format, of all web processes if there are several."""
    registry: CollectorRegistry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def configure_logging(level: int = logging.INFO) -> None:
    """Log JSON lines to stderr, or coloured lines on a terminal. Logs of libraries use the same format."""
    is_terminal = sys.stderr.isatty()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[Any] = (
        [structlog.dev.ConsoleRenderer()]
        if is_terminal
        else [
            # without local variables: they may contain callers' keys
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
    """Return a structured logger: `log.info("build.done", model="fraud", version=3)`."""
    return structlog.stdlib.get_logger(name)
