"""Expensive models under load: joint calls, a slow model beside a fast one, and recovery from overload.

    python -m benchmarks.batching [--seconds 5] [--trees 500] [--json]

`burst` sends single rows on 1 and on 32 connections: CPU time of the server and its children per request,
latency, and requests per call of the model. Then it sends different rows at once and compares the answers
with those of one request after another. `beside` measures a cheap model alone, and while 16 connections send
100 rows each to an expensive one; `cores` is the CPU time of all models per second. `overload` sends far more
than the expensive model can answer; then it counts the seconds until a single request is answered as fast as
before. Exit code 1 when an answer differs or the recovery takes more than a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from tests.harness.load import LoadReport, for_seconds, generate_load, post_request
from tests.harness.machine import describe_machine
from tests.harness.models import cancer_forest
from tests.harness.server import Server

FAST, DEEP, NEIGHBORS, ISOLATED = "fast", "deep", "neighbors", "isolated"
FEATURES = 30
BULK_ROWS = 100
DIFFERENT_ROWS = 256
OVERLOAD_CONNECTIONS = 200
RECOVERY_S = 1.0

Figures = dict[str, Any]


class Site:
    """A server with one cheap and three expensive models."""

    def __init__(self, server: Server, trees: int) -> None:
        self.server = server
        self.process = psutil.Process(server.process.pid)
        self.rows = np.random.default_rng(0).normal(size=(DIFFERENT_ROWS, FEATURES))
        self.runtimes = {name: self._publish(name, *model) for name, model in _models(trees).items()}

    def _publish(self, name: str, model: Any, example: bytes) -> str:
        record = self.server.publish(name, model, example, alias="champion")
        self.call(name, self.rows[:1])
        runtime: str = record["runtime"]
        return runtime

    def body(self, rows: Any) -> bytes:
        return json.dumps({"instances": rows.tolist()}).encode()

    def call(self, model: str, rows: Any) -> Any:
        return self.server.call_json("POST", f"/v1/models/{model}/predict", {"instances": rows.tolist()})

    def load(self, model: str, rows: int, connections: int, seconds: float, as_csv: bool = False) -> Any:
        """Return the coroutine of a load with the first `rows` rows, as JSON or CSV."""
        body, content_type = self.body(self.rows[:rows]), "application/json"
        if as_csv:
            names = [f["name"] for f in self.call_signature(model)["inputs"]]
            body = "\n".join([",".join(f'"{n}"' for n in names), *_csv_lines(self.rows[:rows])]).encode()
            content_type = "text/csv"
        path = f"/v1/models/{model}/predict"
        request = post_request(self.server.port, path, body, self.server.key, Content_Type=content_type)
        return generate_load(
            self.server.port,
            request,
            concurrency=connections,
            keep_going=for_seconds(seconds),
            process=self.process,
        )

    def call_signature(self, model: str) -> Any:
        return self.server.call_json("GET", f"/v1/models/{model}/versions/1")["signature"]

    def joint_calls(self, model: str) -> tuple[float, float]:
        """Return the number of calls of the model's queue, and of their requests."""
        _, content = self.server.call("GET", "/metrics")
        samples = dict(line.rsplit(" ", 1) for line in content.decode().splitlines() if line[:1] != "#")
        labels = f'{{model="{model}",version="1"}}'
        count, total = (
            samples.get(f"trivium_joint_call_requests_{part}{labels}", 0) for part in ("count", "sum")
        )
        return float(count), float(total)


def _csv_lines(rows: Any) -> list[str]:
    return [",".join(map(str, row)) for row in rows.tolist()]


def _models(trees: int) -> dict[str, tuple[Any, bytes]]:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import QuantileTransformer

    generator = np.random.default_rng(1)
    rows = generator.normal(size=(5_000, FEATURES))
    labels = (rows[:, 0] * rows[:, 1] + rows[:, 2] + generator.normal(size=len(rows)) > 0).astype(int)
    example = ",".join(f"x{n}" for n in range(FEATURES)) + "\n"
    example += "\n".join(_csv_lines(rows[:50]))
    quantiles = make_pipeline(QuantileTransformer(random_state=0), KNeighborsClassifier())
    fast, fast_example, _ = cancer_forest()
    return {
        FAST: (fast, fast_example),
        DEEP: (
            RandomForestClassifier(trees, max_depth=16, n_jobs=-1, random_state=0).fit(rows, labels),
            example.encode(),
        ),
        NEIGHBORS: (KNeighborsClassifier().fit(rows, labels), example.encode()),
        ISOLATED: (quantiles.fit(rows, labels), example.encode()),
    }


def figures_of(report: LoadReport) -> Figures:
    refused = sum(error.startswith(b"HTTP/1.1 503") for error in report.errors)
    return {
        "requests/s": round(report.requests / report.wall_s),
        "cpu_us": round(report.cpu_us),
        "p50_ms": round(report.percentile(50), 2),
        "p99_ms": round(report.percentile(99), 2),
        **({"503": refused} if refused else {}),
        **({"errors": len(report.errors) - refused} if len(report.errors) > refused else {}),
    }


def measure_burst(site: Site, model: str, seconds: float) -> Figures:
    figures: Figures = {"runtime": site.runtimes[model]}
    for connections in (1, 32):
        before = site.joint_calls(model)
        report = asyncio.run(site.load(model, 1, connections, seconds))
        calls, requests = (a - b for a, b in zip(site.joint_calls(model), before, strict=True))
        figures[f"{connections} connections"] = figures_of(report) | {
            "requests_per_call": round(requests / calls, 1) if calls else 1.0
        }
    figures["different_answers"] = asyncio.run(_count_different_answers(site, model))
    return figures


async def _count_different_answers(site: Site, model: str) -> int:
    """Return how many answers to concurrent requests differ from those to one request after another."""
    limits = httpx.Limits(max_connections=64)
    headers = {"Authorization": f"Bearer {site.server.key}", "Content-Type": "application/json"}
    path = f"{site.server.url}/v1/models/{model}/predict"
    async with httpx.AsyncClient(headers=headers, limits=limits, timeout=60) as client:

        async def predict(row: Any) -> Any:
            answer = await client.post(path, content=site.body(row[None]))
            return answer.json().get("predictions")

        alone = [await predict(row) for row in site.rows]
        joint = await asyncio.gather(*(predict(row) for row in site.rows))
    return sum(a is None or a != b for a, b in zip(alone, joint, strict=True))


def measure_beside(site: Site, slow: str, seconds: float) -> Figures:
    """Measure the cheap model, whose JSON bodies need no thread and whose CSV bodies do."""

    async def loads(*names: str) -> list[LoadReport]:
        requests = {
            "fast JSON": lambda: site.load(FAST, 1, 2, seconds),
            "fast CSV": lambda: site.load(FAST, 1, 2, seconds, as_csv=True),
            slow: lambda: site.load(slow, BULK_ROWS, 16, seconds),
        }
        return list(await asyncio.gather(*(requests[name]() for name in names)))

    names = ("fast JSON", "fast CSV", slow)
    alone, beside = asyncio.run(loads(*names[:2])), asyncio.run(loads(*names))
    figures = {f"{name} alone": figures_of(report) for name, report in zip(names, alone, strict=False)}
    figures |= {f"{name} beside": figures_of(report) for name, report in zip(names, beside, strict=True)}
    for of_one in figures.values():
        del of_one["cpu_us"]  # that of all models
    figures["cores"] = {
        "alone": round(alone[0].server_cpu_s / alone[0].wall_s, 2),
        "beside": round(beside[0].server_cpu_s / beside[0].wall_s, 2),
    }
    return figures


def measure_overload(site: Site, slow: str, seconds: float) -> Figures:
    alone_s = min(_seconds_of_call(site, slow) for _ in range(5))

    async def overload() -> tuple[LoadReport, float]:
        load = asyncio.create_task(site.load(slow, BULK_ROWS, OVERLOAD_CONNECTIONS, seconds))
        await asyncio.sleep(seconds)  # then no further request is sent; those that wait are not withdrawn
        start = time.monotonic()
        while await asyncio.to_thread(_seconds_of_call, site, slow) > max(2 * alone_s, alone_s + 0.05):
            pass
        recovery_s = time.monotonic() - start
        return await load, recovery_s

    report, recovery_s = asyncio.run(overload())
    return {"alone_ms": round(alone_s * 1000, 1), **figures_of(report), "recovery_s": round(recovery_s, 3)}


def _seconds_of_call(site: Site, model: str) -> float:
    """Return the time of one call, infinite if it is refused."""
    start = time.monotonic()
    headers = {"Content-Type": "application/json"}
    body = site.body(site.rows[:BULK_ROWS])
    status, _ = site.server.call("POST", f"/v1/models/{model}/predict", body, headers=headers)
    return time.monotonic() - start if status == 200 else float("inf")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--trees", type=int, default=500, help="of the model `deep`")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        with Server(path / "home", path / "server.log", build_timeout_s=3600) as server:
            server.start()
            site = Site(server, options.trees)
            slow = (DEEP, NEIGHBORS, ISOLATED)
            figures: Figures = {f"burst {m}": measure_burst(site, m, options.seconds) for m in slow}
            figures |= {f"beside {m}": measure_beside(site, m, options.seconds) for m in slow}
            figures |= {f"overload {m}": measure_overload(site, m, options.seconds) for m in slow}
    lines = [describe_machine(), *(f"{name}: {values}" for name, values in figures.items())]
    print(json.dumps(figures) if options.json else "\n".join(lines))
    differ = any(figures[f"burst {m}"]["different_answers"] for m in slow)
    return int(differ or any(figures[f"overload {m}"]["recovery_s"] > RECOVERY_S for m in slow))


if __name__ == "__main__":
    sys.exit(main())
