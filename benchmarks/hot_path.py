"""Where the CPU time of a small prediction goes, step by step.

    python -m benchmarks.hot_path [--rounds 9] [--json] [--write]

One row of the breast-cancer forest (100 trees, 30 named features as JSON), in one process and without
sockets: bytes go into uvicorn's HTTP protocol, and bytes come out. Compared are a constant answer (the bare
limit), the same prediction through the ASGI application, and through the lane. The steps of the lane are then
timed one by one, alone and repeatedly: with warm caches they add up to less than the whole.

Every figure is the smallest of some rounds, in microseconds of CPU time. `--write` replaces the table in
docs/performance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import uvloop
from starlette.types import Receive, Scope, Send

from benchmarks.serving.report import PAGE, insert
from service.config import Settings
from service.online.protocol import with_lane
from service.runtime import kernel_code
from service.serve import web_config
from service.web.auth import denial_reason, record_request
from tests.harness.machine import describe_machine
from tests.harness.models import cancer_forest
from tests.harness.wire import Wire
from tests.service.api import Api, running_app
from tests.service.estimators import FittedModel

START, END = "<!-- hot_path: written by scripts/bench hot_path -->", "<!-- hot_path: end -->"
PATH = "/v1/models/demo/predict"
CONNECTIONS, REQUESTS, CALLS = 32, 3200, 2000
ANSWER = b"x" * 130


async def answer_constant(scope: Scope, receive: Receive, send: Send) -> None:
    """The bare limit: read the body, send an answer of the same size as a prediction."""
    await receive()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


async def measure_requests(wires: list[Wire], requested: bytes, rounds: int) -> float:
    """Return the CPU time of a request, sent over all connections in turn."""
    fastest, turns = float("inf"), REQUESTS // len(wires)
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(turns):
            for wire in wires:
                wire.sent = b""
                wire.protocol.data_received(requested)
            await asyncio.sleep(0)  # uvicorn's tasks run now, and their callbacks in the next turn
            await asyncio.sleep(0)
        fastest = min(fastest, time.process_time() - start)
        for wire in wires:
            if not wire.sent.startswith(b"HTTP/1.1 200") or wire.protocol.tasks:
                raise RuntimeError(f"the answer is {wire.sent[:500]!r}")
    return fastest / (turns * len(wires)) * 1e6


def measure_step(step: Callable[[], object], rounds: int) -> float:
    fastest = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(CALLS):
            step()
        fastest = min(fastest, time.process_time() - start)
    return fastest / CALLS * 1e6


Steps = dict[str, Callable[[], object]]


def lane_steps(api: Api, body: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[Steps, Steps]:
    """Return the steps of each request in the lane, and those of a new head, by their names in the table."""
    lane, url = api.lane, PATH.encode()
    request = lane.admit(url, headers)
    assert request is not None
    predictor, keys = lane.predictor, lane.keys
    target = predictor.resolve_now("demo", None, None, request.headers)
    call_format = request.target.door.select_format(request.headers)
    prediction = predictor.predict_now(target, call_format, body)
    assert prediction is not None, "the model is loaded"
    loaded, context = prediction.loaded, keys.authenticate(request.headers)
    context.route, context.status, context.quiet = request.target.door.route, 200, True
    rows = loaded.codec.decode_json(body)
    outputs = loaded.run(rows)
    new_head: Steps = {
        "admit the request by its path and headers": lambda: lane.admit(url, headers),
        "authenticate, and check the scope": lambda: denial_reason(
            keys.authenticate(request.headers).key, "predict", model="demo"
        ),
        "resolve alias and version": lambda: predictor.resolve_now("demo", None, None, request.headers),
        "select the format": lambda: request.target.door.select_format(request.headers),
    }
    each: Steps = {
        "decode and check the body": lambda: loaded.codec.decode_json(body),
        "run the forest": lambda: loaded.run(rows),
        "encode the answer": lambda: call_format.encode(loaded, outputs, prediction.id),
        "count the request and the prediction": lambda: (
            record_request(context, "POST", PATH, 1e-4),
            loaded.meter.observe(1e-4, 1),
        ),
    }
    return each, new_head


async def measure(rounds: int) -> dict[str, Any]:
    kernel_code.load_or_compile()
    with tempfile.TemporaryDirectory() as folder:
        async with running_app(Settings(home=Path(folder) / "home")) as api:
            model, example, rows = cancer_forest()
            frame = pd.read_csv(io.BytesIO(example))
            record = await api.publish("demo", FittedModel(model, frame), alias="champion")
            if record["state"] != "ready":
                raise RuntimeError(f"the build was rejected: {record['report']}")
            return await measure_api(api, msgspec.json.encode({"instances": [rows[0]]}), rounds)


async def measure_api(api: Api, body: bytes, rounds: int) -> dict[str, Any]:
    headers = [
        (b"host", b"127.0.0.1:8000"),
        (b"content-type", b"application/json"),
        (b"authorization", f"Bearer {api.admin}".encode()),
        (b"content-length", b"%d" % len(body)),
    ]
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    requested = b"POST %b HTTP/1.1\r\n%b\r\n%b" % (PATH.encode(), lines, body)
    configurations = {
        "bare": web_config(answer_constant, api.settings),
        "application": web_config(api.app, api.settings),
        "lane": web_config(api.app, api.settings, with_lane(api.lane)),
    }
    figures: dict[str, Any] = {}
    for name, config in configurations.items():
        wires = [Wire(config) for _ in range(CONNECTIONS)]
        await measure_requests(wires, requested, 1)
        gc.freeze()
        figures[name] = await measure_requests(wires, requested, rounds)
    for name, steps in zip(("steps", "new_head"), lane_steps(api, body, headers), strict=True):
        figures[name] = {step: measure_step(function, rounds) for step, function in steps.items()}
    return figures


def table(figures: dict[str, Any]) -> str:
    """Return the section of docs/performance.md."""
    bare, lane = figures["bare"], figures["lane"]
    rest = lane - sum(figures["steps"].values())
    lines = [
        f"{describe_machine()}. Microseconds of CPU time for each request, without the time in the kernel.",
        "",
        "| | µs | of the bare limit |",
        "|---|---|---|",
        f"| uvicorn with a constant answer: the bare limit | {bare:.1f} | 1.0 |",
        f"| a prediction through the ASGI application | {figures['application']:.1f} "
        f"| {figures['application'] / bare:.1f} |",
        f"| **a prediction through the lane** | **{lane:.1f}** | **{lane / bare:.1f}** |",
        *(f"| - {name} | {value:.1f} | {value / bare:.2f} |" for name, value in figures["steps"].items()),
        f"| - the rest: the connection, the known head, the response, and cold caches | {rest:.1f} "
        f"| {rest / bare:.2f} |",
        *(
            f"| only for a head that is not known: {name} | {value:.1f} | {value / bare:.2f} |"
            for name, value in figures["new_head"].items()
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="replace the table in docs/performance.md")
    options = parser.parse_args()
    figures = uvloop.run(measure(options.rounds))
    print(json.dumps(figures) if options.json else table(figures))
    if options.write:
        PAGE.write_text(insert(PAGE.read_text(), table(figures), START, END))


if __name__ == "__main__":
    main()
