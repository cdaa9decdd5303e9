"""Meters of requests and predictions; logging, in its own process because its configuration is global."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

from prometheus_client import REGISTRY, CollectorRegistry

from service import telemetry

FAULT = """
from service.telemetry import configure_logging, logger
configure_logging()
def answer(authorization):
    return 1 / 0
try:
    answer("Bearer " + "abc" * 2)
except ZeroDivisionError:
    logger("here").exception("request.failed")
"""


def test_a_logged_error_has_its_traceback_and_no_local_variables() -> None:
    log = subprocess.run([sys.executable, "-c", FAULT], check=True, capture_output=True, text=True).stderr
    assert "abcabc" not in log
    line = json.loads(log)
    assert line["exception"][0]["exc_type"] == "ZeroDivisionError"
    assert line["exception"][0]["frames"][-1]["name"] == "answer"


def samples(name: str, **labels: str) -> dict[str, float]:
    """Return the values of a metric by the suffix of their name and their bucket, without zeros."""
    return {
        sample.name.removeprefix(name) + sample.labels.get("le", ""): sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name.startswith(name)
        and sample.value
        and labels.items() <= sample.labels.items()
        and not sample.name.endswith("_created")
    }


def test_observations_of_threads_are_all_counted_while_others_flush() -> None:
    meter = telemetry.predict_meter("threads", 1, "onnx")
    assert telemetry.predict_meter("threads", 1, "onnx") is meter
    flushing = threading.Event()

    def observe() -> None:
        for _ in range(20_000):
            meter.observe(0.25, 2)

    def flush() -> None:
        while not flushing.is_set():
            telemetry.flush()

    observing = [threading.Thread(target=observe) for _ in range(3)]
    flushers = [threading.Thread(target=flush) for _ in range(2)]
    for thread in (*observing, *flushers):
        thread.start()
    for thread in observing:
        thread.join()
    flushing.set()
    for thread in flushers:
        thread.join()
    telemetry.flush()
    assert samples("trivium_predicted_rows_total", model="threads") == {"": 120_000}
    seconds = samples("trivium_predict_seconds", model="threads")
    assert (seconds["_count"], seconds["_sum"]) == (60_000, 15_000)


def test_a_request_is_counted_by_route_method_and_status() -> None:
    for method, status in (("POST", 200), ("POST", 200), ("POST", 503), ("BREW", 405)):
        telemetry.request_meter("/tea", method, status).observe(0.02)
    assert b'trivium_requests_total{method="POST",route="/tea",status="200"} 2.0' in telemetry.metrics()
    assert samples("trivium_requests_total", route="/tea", status="503") == {"": 1}
    assert samples("trivium_requests_total", route="/tea", method="other") == {"": 1}
    assert samples("trivium_request_seconds", route="/tea")["_count"] == 4


def test_many_observations_give_the_same_histogram_as_single_ones() -> None:
    values = [0.0, 0.125, 0.125, 0.1875, 0.5, 2.0, 3.0, 7.0]
    many, single = (
        telemetry.BulkHistogram("seconds", "of a call", ["kind"], buckets=(0.125, 0.5, 2), registry=registry)
        for registry in (CollectorRegistry(), CollectorRegistry())
    )
    many.labels("a").observe_all(values)
    for value in values:
        single.labels("a").observe(value)

    def values_of(histogram: telemetry.BulkHistogram) -> list[tuple[str, str | None, float]]:
        (metric,) = histogram.collect()
        return [(s.name, s.labels.get("le"), s.value) for s in metric.samples if "created" not in s.name]

    assert values_of(many) == values_of(single)
