"""What one call costs over gRPC: CPU of the server process, beside an empty `grpc.aio` call and HTTP.

    python -m benchmarks.grpc_online [--calls 3000] [--rounds 5] [--connections 32] [--json]

One row of the breast-cancer forest of 100 trees, raw and typed, in `ModelInfer`; the same row in JSON over
HTTP; and a server whose only method returns its bytes, on the same kind of event loop. They are measured in
turn; the figures are the minimum of the rounds, so other load on the machine counts little.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import psutil
import uvloop

from service.runtime.codec import inference_messages as messages
from tests.harness.load import generate_load, post_request
from tests.harness.machine import cpu_seconds, describe_machine, free_port
from tests.harness.models import cancer_forest
from tests.harness.server import Server, serving

EMPTY = "/empty.Service/Call"
INFER = "/inference.GRPCInferenceService/ModelInfer"


async def _serve_empty(port: int) -> None:
    async def call(body: bytes, _context: Any) -> bytes:
        return body

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, _details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(call)

    server = grpc.aio.server(handlers=[Handler()])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


@contextmanager
def empty_server() -> Iterator[tuple[int, psutil.Process]]:
    port = free_port()
    child = subprocess.Popen([sys.executable, "-m", "benchmarks.grpc_online", "--serve-empty", str(port)])
    try:
        yield port, psutil.Process(child.pid)
    finally:
        child.kill()
        child.wait()


async def _send(port: int, method: str, body: bytes, metadata: Any, calls: int, connections: int) -> None:
    """Send calls over that many connections, one at a time over each."""
    left = iter(range(calls))

    async def client() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            call = channel.unary_unary(method)
            for _ in left:
                await call(body, metadata=metadata, wait_for_ready=True)

    await asyncio.gather(*(client() for _ in range(connections)))


def infer_bodies(row: list[float]) -> dict[str, bytes]:
    tensor = {"name": "input", "datatype": "FP64", "shape": [1, len(row)]}
    typed = tensor | {"contents": {"fp64_contents": row}}
    raw = [np.array(row).tobytes()]
    return {
        "raw": messages.ModelInferRequest(
            model_name="cancer", inputs=[tensor], raw_input_contents=raw
        ).SerializeToString(),
        "typed": messages.ModelInferRequest(model_name="cancer", inputs=[typed]).SerializeToString(),
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    model, example, rows = cancer_forest()
    port = free_port()
    micros: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "home"
        server = stack.enter_context(serving(home, grpc_port=port))
        empty_port, empty = stack.enter_context(empty_server())
        server.publish("cancer", model, example, alias="champion")
        bodies = infer_bodies(list(rows[0].values()))
        process = psutil.Process(server.process.pid)
        metadata = [("authorization", f"Bearer {server.key}")]
        subjects = {
            "empty": (empty, empty_port, EMPTY, bodies["raw"], None),
            "raw": (process, port, INFER, bodies["raw"], metadata),
            "typed": (process, port, INFER, bodies["typed"], metadata),
        }
        for number in range(arguments.rounds + 1):  # the first warms up
            for name, (measured, at, method, body, sent) in subjects.items():
                before = cpu_seconds(measured)
                asyncio.run(_send(at, method, body, sent, arguments.calls, arguments.connections))
                if number:
                    seconds = cpu_seconds(measured) - before
                    micros.setdefault(name, []).append(seconds / arguments.calls * 1e6)
            if number:
                micros.setdefault("HTTP", []).append(_http(server, process, rows[0], arguments))
    least = {name: round(min(values), 1) for name, values in micros.items()}
    return {"cpu_us": least, "of_empty": {n: round(v / least["empty"], 2) for n, v in least.items()}}


def _http(
    server: Server, process: psutil.Process, row: dict[str, float], arguments: argparse.Namespace
) -> float:
    left = iter(range(arguments.calls))
    report = asyncio.run(
        generate_load(
            server.port,
            post_request(
                server.port,
                "/v1/models/cancer/predict",
                json.dumps({"instances": [row]}).encode(),
                server.key,
                Content_Type="application/json",
            ),
            concurrency=arguments.connections,
            keep_going=lambda: next(left, None) is not None,
            process=process,
        )
    )
    if report.errors:
        raise SystemExit(f"a request failed: {report.errors[0]!r}")
    return report.cpu_us


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the CPU of one call over gRPC.")
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve-empty", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_empty:
        uvloop.run(_serve_empty(arguments.serve_empty))
        return
    report = run(arguments)
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{describe_machine()}\n\n{'call':6} {'CPU us':>7} {'of empty':>9}")
    for name, cpu_us in report["cpu_us"].items():
        print(f"{name:6} {cpu_us:7} {report['of_empty'][name]:9.2f}")


if __name__ == "__main__":
    main()
