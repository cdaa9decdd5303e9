"""Single-row predictions of a forest over HTTP, compared with other ways to serve it.

    python -m benchmarks.online [--seconds 4] [--litserve PYTHON] [--json]

All servers are uvicorn with uvloop and httptools in one process. They get the same row over 32 keep-alive
connections, in turns and twice; the turn with less CPU time counts. CPU microseconds per request, of the
server alone, can be compared between machines; latencies cannot, and they include the load generator's work.

- `echo`: plain ASGI that reads the body and returns it
- `asgi + onnx`: plain ASGI with the same ONNX session, without keys, types and metrics: the lower limit
- `fastapi + onnx`: a route with a pydantic body and the same ONNX session, which returns a dict
- `fastapi + joblib`: a route that calls `RandomForestClassifier.predict_proba`, as in many articles
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import psutil
import pyarrow as pa

from tests.harness.load import LoadReport, for_seconds, generate_load, post_request
from tests.harness.machine import describe_machine, free_port
from tests.harness.models import cancer_forest
from tests.harness.server import Server

PEERS = Path(__file__).parent / "peers"
Address = tuple[int, psutil.Process]


@contextlib.contextmanager
def peer(name: str, *arguments: object, python: str = sys.executable) -> Iterator[Address]:
    """Start one of `benchmarks/peers` and wait until it listens."""
    port = free_port()
    process = subprocess.Popen([python, PEERS / f"{name}.py", str(port), *map(str, arguments)])
    try:
        _wait_for(port, process)
        yield port, psutil.Process(process.pid)
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        for each in [*children, process]:  # some peers do not end their child processes
            each.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"a peer ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)


def run(
    port: int, content: bytes, process: psutil.Process, seconds: float, concurrency: int = 32
) -> LoadReport:
    async def both() -> LoadReport:
        await generate_load(port, content, concurrency=concurrency, keep_going=for_seconds(seconds / 4))
        return await generate_load(
            port, content, concurrency=concurrency, keep_going=for_seconds(seconds), process=process
        )

    load = asyncio.run(both())
    if load.errors:
        raise RuntimeError(f"{len(load.errors)} errors, the first: {load.errors[0][:500]!r}")
    return load


def one_row(servers: dict[str, tuple[Address, bytes]], seconds: float) -> dict[str, dict[str, float]]:
    """Return figures by the name of each server."""
    figures: dict[str, dict[str, float]] = {}
    for _ in range(2):
        for name, ((port, process), content) in servers.items():
            load = run(port, content, process, seconds)
            if name not in figures or load.cpu_us < figures[name]["cpu_us"]:
                figures[name] = {
                    "cpu_us": load.cpu_us,
                    "p50_ms": load.percentile(50),
                    "p99_ms": load.percentile(99),
                    "per_s": load.requests / load.wall_s,
                }
    return figures


@contextlib.contextmanager
def all_servers(
    server: Server, folder: Path, model: Any, row: dict[str, float], litserve: str | None
) -> Iterator[dict[str, tuple[Address, bytes]]]:
    """Start all servers; yield their addresses and the request for each."""
    body = json.dumps({"instances": [row]}).encode()
    names, pickle, graph = folder / "names.json", folder / "model.joblib", servable(server.home)
    names.write_text(json.dumps(list(row)))
    joblib.dump(model, pickle)

    def plain(address: Address, path: str = "/predict") -> tuple[Address, bytes]:
        return address, post_request(address[0], path, body, Content_Type="application/json")

    own_address = server.port, psutil.Process(server.process.pid)
    with contextlib.ExitStack() as running:
        servers = {
            "echo": plain(running.enter_context(peer("echo"))),
            "asgi + onnx": plain(running.enter_context(peer("asgi_onnx", graph, names))),
            "trivium": (own_address, post_request(server.port, "/v1/models/demo/predict", body, server.key)),
            "fastapi + onnx": plain(running.enter_context(peer("fastapi_onnx", graph, names))),
            "fastapi + joblib": plain(running.enter_context(peer("fastapi_joblib", pickle, names))),
        }
        if litserve:
            litserve_url = running.enter_context(peer("litserve_joblib", pickle, python=litserve))
            servers["litserve + joblib"] = plain(litserve_url)
        yield servers


def servable(home: Path) -> Path:
    """Return the ONNX file that the build wrote."""
    with contextlib.closing(sqlite3.connect(home / "registry.db")) as database:
        (sha256,) = database.execute("SELECT servable FROM versions WHERE servable NOT NULL").fetchone()
    return home / "blobs" / sha256[:2] / str(sha256)


def many_rows(server: Server, rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the median milliseconds of 1,000 rows by format, one request at a time."""
    thousand = (rows * 2)[:1000]
    names = list(rows[0])
    lines = [",".join(names), *(",".join(str(v) for v in row.values()) for row in thousand)]
    table = pa.table({n: np.array([row[n] for row in thousand]) for n in names})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    bodies = {
        "application/json": json.dumps({"instances": thousand}).encode(),
        "text/csv": "\n".join(lines).encode(),
        "application/vnd.apache.arrow.stream": sink.getvalue().to_pybytes(),
    }
    process, figures = psutil.Process(server.process.pid), {}
    for kind, body in bodies.items():
        content = post_request(
            server.port, "/v1/models/demo/predict", body, server.key, Content_Type=kind, Accept=kind
        )
        figures[kind] = run(server.port, content, process, 2.0, concurrency=1).percentile(50)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--litserve", metavar="PYTHON", help="a Python that has litserve and scikit-learn")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model, example, rows = cancer_forest()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Server(folder / "home", folder / "log") as server:
            server.start()
            server.publish("demo", model, example, alias="champion")
            with all_servers(server, folder, model, rows[0], options.litserve) as servers:
                row_figures = one_row(servers, options.seconds)
            thousand_row_ms = many_rows(server, rows)
    if options.json:
        print(json.dumps({"one_row": row_figures, "thousand_rows_p50_ms": thousand_row_ms}))
        return
    print(describe_machine())
    print(f"{'one row':<20}{'CPU us':>10}{'x echo':>8}{'p50 ms':>9}{'p99 ms':>9}{'per s':>9}")
    for name, f in row_figures.items():
        ratio = f["cpu_us"] / row_figures["echo"]["cpu_us"]
        print(
            f"{name:<20}{f['cpu_us']:>10.0f}{ratio:>8.2f}{f['p50_ms']:>9.2f}{f['p99_ms']:>9.2f}{f['per_s']:>9.0f}"
        )
    for kind, ms in thousand_row_ms.items():
        print(f"1,000 rows, {kind:<40}{ms:>8.2f} ms p50")


if __name__ == "__main__":
    main()
