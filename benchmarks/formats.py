"""Predictions for 1,000 rows in one request, as JSON, CSV and Arrow.

    python -m benchmarks.formats [--seconds 2] [--json]

One request at a time, on a forest of 100 trees for the breast-cancer data. Answers have the request's format.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from tests.harness.load import LoadReport, for_seconds, generate_load, post_request
from tests.harness.machine import describe_machine
from tests.harness.models import cancer_forest
from tests.harness.server import Server


def bodies(rows: list[dict[str, float]]) -> dict[str, bytes]:
    """Return the same rows by media type."""
    names = list(rows[0])
    lines = [",".join(names), *(",".join(str(v) for v in row.values()) for row in rows)]
    table = pa.table({n: np.array([row[n] for row in rows]) for n in names})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return {
        "application/json": json.dumps({"instances": rows}).encode(),
        "text/csv": "\n".join(lines).encode(),
        "application/vnd.apache.arrow.stream": sink.getvalue().to_pybytes(),
    }


def measure(server: Server, kind: str, body: bytes, seconds: float) -> LoadReport:
    """Raises `RuntimeError` when an answer is not 200."""
    path = "/v1/models/demo/predict"
    request = post_request(server.port, path, body, server.key, Content_Type=kind, Accept=kind)
    process = psutil.Process(server.process.pid)

    async def warm_up_and_load() -> LoadReport:
        await generate_load(server.port, request, concurrency=1, keep_going=for_seconds(seconds / 4))
        return await generate_load(
            server.port, request, concurrency=1, keep_going=for_seconds(seconds), process=process
        )

    report = asyncio.run(warm_up_and_load())
    if report.errors:
        raise RuntimeError(f"{len(report.errors)} errors, the first: {report.errors[0][:500]!r}")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each format (default 2)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model, example, rows = cancer_forest()
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Server(folder / "home", folder / "log") as server:
            server.start()
            server.publish("demo", model, example, alias="champion")
            for kind, body in bodies((rows * 2)[:1000]).items():
                report = measure(server, kind, body, options.seconds)
                figures[kind] = {"p50_ms": report.percentile(50), "cpu_ms": report.cpu_us / 1000}
    if options.json:
        print(json.dumps(figures))
        return
    print(describe_machine())
    for kind, figure in figures.items():
        print(f"{kind:<38} p50 {figure['p50_ms']:>7.2f} ms, CPU {figure['cpu_ms']:>7.2f} ms")


if __name__ == "__main__":
    main()
