"""Logs and metrics: JSON lines on stderr (colours on a terminal), and Prometheus metrics.

With several web processes, `PROMETHEUS_MULTIPROC_DIR` is set before they start, and one scrape returns the
metrics of all of them. Their files are named by the number of the process (`PROCESS_VARIABLE`), not by its
id: a replaced process continues the counters of the one that ended.

Requests and predictions are counted by meters: an observation appends to a list, which takes 0.1 us. A
counter and a histogram of prometheus_client take 1 us, and 3 us with several web processes.
`flush_periodically` adds the observations to them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import secrets
import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
    values,
)
from prometheus_client.registry import REGISTRY

from service import startup

with startup.hidden("rich"):  # structlog would import it for coloured tracebacks, which are not used here
    import structlog
    from structlog.tracebacks import ExceptionDictTransformer

T = TypeVar("T")

PROCESS_VARIABLE = "WEB_PROCESS_NUMBER"
"""Environment variable: the number of this process among several web processes."""
if (process_number := os.environ.get(PROCESS_VARIABLE)) is not None:
    # before the first metric is created
    values.ValueClass = values.MultiProcessValue(lambda: process_number)  # type: ignore[no-untyped-call]

FLUSH_S = 0.25
"""Interval of `flush_periodically`: what a killed process may lose, and how far other processes may lag."""


class BulkHistogram(Histogram):
    """A histogram that takes many observations at once."""

    def observe_all(self, values: Sequence[float]) -> None:
        """Equivalent to `observe` with each of the values."""
        self._sum.inc(sum(values))
        ordered, start = sorted(values), 0
        for bucket, bound in zip(self._buckets, self._upper_bounds, strict=True):
            end = bisect_right(ordered, bound, start)
            if end > start:
                bucket.inc(end - start)
                start = end


REQUESTS = Counter("trivium_requests_total", "HTTP requests and gRPC calls", ["route", "method", "status"])
REQUEST_SECONDS = BulkHistogram(
    "trivium_request_seconds", "Time to answer an HTTP request or gRPC call", ["route"]
)
PREDICT_SECONDS = BulkHistogram(
    "trivium_predict_seconds",
    "Time from a complete predict request to its response",
    ["model", "version", "runtime"],
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
PREDICTED_ROWS = Counter("trivium_predicted_rows_total", "Rows predicted", ["model", "version", "runtime"])
JOINT_CALLS = BulkHistogram(
    "trivium_joint_call_requests",
    "Requests that were answered by one call of a model with a queue",
    ["model", "version"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
)
QUEUED_CALLS = Gauge(
    "trivium_queued_calls",
    "Predict calls that wait for the model",
    ["model", "version"],
    multiprocess_mode="livesum",
)
SHED_CALLS = Counter(
    "trivium_shed_calls_total", "Predict calls refused because the queue is full", ["model", "version"]
)
MISSED_DEADLINES = Counter(
    "trivium_missed_deadlines_total", "Predict calls that passed their deadline", ["model", "version"]
)
WITHDRAWN_CANARIES = Counter(
    "trivium_withdrawn_canaries_total",
    "Canaries that passed a bound and went back",
    ["model", "alias", "version", "bound"],
)
SHADOW_ROWS = Counter(
    "trivium_shadow_rows_total",
    "Rows for shadow versions: agreed, differed, failed, or shed under load",
    ["model", "version", "outcome"],
)
LOGGED_ROWS = Counter("trivium_prediction_log_rows_total", "Rows written to prediction logs", ["model"])
DROPPED_ROWS = Counter(
    "trivium_prediction_log_dropped_rows_total",
    "Rows that prediction logs lack: queue_full, not_written (disk) or not_joined",
    ["model", "reason"],
)
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
WEB_PROCESSES = Gauge("trivium_web_processes", "Web processes that serve", multiprocess_mode="livesum")
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

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "GRPC"})
METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ids = itertools.count(1)
_prefix = secrets.token_hex(5)


def make_id(kind: str) -> str:
    """Create an identifier such as `req-5f1c0a9b3e-1a`, unique per start of the process.

    It is cheap: a uuid4 would take half the time of a small prediction.
    """
    return f"{kind}-{_prefix}-{next(_ids):x}"


class RequestMeter:
    """Counts the requests of one route, method and status. Threads may use one meter."""

    __slots__ = ("_counter", "_histogram", "_pending", "observe")

    def __init__(self, counter: Counter, histogram: BulkHistogram) -> None:
        self._counter, self._histogram = counter, histogram
        self._pending: list[float] = []
        self.observe: Callable[[float], None] = self._pending.append
        """Count one request, which took that many seconds."""

    def flush(self) -> None:
        if seconds := _take(self._pending):
            self._counter.inc(len(seconds))
            self._histogram.observe_all(seconds)


class PredictMeter:
    """Counts the predict calls of one version. Threads may use one meter."""

    __slots__ = ("_append", "_histogram", "_pending", "_rows")

    def __init__(self, rows: Counter, histogram: BulkHistogram) -> None:
        self._rows, self._histogram = rows, histogram
        self._pending: list[tuple[float, int]] = []
        self._append = self._pending.append

    def observe(self, seconds: float, rows: int) -> None:
        """Count one call with that many rows."""
        self._append((seconds, rows))

    def flush(self) -> None:
        if calls := _take(self._pending):
            seconds, rows = zip(*calls, strict=True)
            self._rows.inc(sum(rows))
            self._histogram.observe_all(seconds)


class QueueMeter:
    """Counts the calls of one version that go through a queue."""

    __slots__ = ("_gauge", "_histogram", "_pending", "observe", "shed", "waiting")

    def __init__(self, histogram: BulkHistogram, gauge: Gauge, shed: Counter) -> None:
        self._histogram, self._gauge, self.shed = histogram, gauge, shed
        self._pending: list[float] = []
        self.observe: Callable[[float], None] = self._pending.append
        """Count one joint call of that many requests."""
        self.waiting = 0

    def flush(self) -> None:
        self._gauge.set(self.waiting)
        if requests := _take(self._pending):
            self._histogram.observe_all(requests)


_meters: list[RequestMeter | PredictMeter | QueueMeter] = []
_flushing = threading.Lock()


@cache
def request_meter(route: str, method: str, status: int) -> RequestMeter:
    """Return the meter of these requests, always the same one.

    `route` must be a template, not a path: each value creates a time series.
    """
    known_method = method if method in METHODS else "other"
    requests = REQUESTS.labels(route, known_method, str(status))
    meter = RequestMeter(requests, REQUEST_SECONDS.labels(route))
    _meters.append(meter)
    return meter


@cache
def predict_meter(model: str, version: int, runtime: str) -> PredictMeter:
    """Return the meter of a version's predict calls, always the same one."""
    labels = (model, str(version), runtime)
    meter = PredictMeter(PREDICTED_ROWS.labels(*labels), PREDICT_SECONDS.labels(*labels))
    _meters.append(meter)
    return meter


@cache
def queue_meter(model: str, version: int) -> QueueMeter:
    """Return the meter of a version's queue, always the same one."""
    labels = (model, str(version))
    meter = QueueMeter(JOINT_CALLS.labels(*labels), QUEUED_CALLS.labels(*labels), SHED_CALLS.labels(*labels))
    _meters.append(meter)
    return meter


def _take(pending: list[T]) -> list[T]:
    """Remove and return the items. Others may append meanwhile: each step is atomic."""
    items = pending[:]
    del pending[: len(items)]
    return items


def flush() -> None:
    """Add the observations of all meters to their metrics."""
    with _flushing:
        for meter in tuple(_meters):
            meter.flush()


async def flush_periodically() -> None:
    """Flush until it is cancelled, and then once more."""
    try:
        while True:
            await asyncio.sleep(FLUSH_S)
            flush()
    finally:
        flush()


def metrics() -> bytes:
    """Return the metrics in Prometheus' text format, of all web processes if there are several."""
    flush()
    registry: CollectorRegistry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def delete_gauges(directory: Path, process: int) -> None:
    """Delete the gauges of a web process that ended, from the directory of the metrics of all."""
    multiprocess.mark_process_dead(process, str(directory))  # type: ignore[no-untyped-call]


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
