"""What the prediction log costs: requests per second and CPU per request with the log off, sampled and on.

    python -m benchmarks.prediction_log [--seconds 5] [--rounds 5] [--connections 32] [--json]

One server on one core, `wrk` on another, single rows of the breast-cancer forest of 100 trees. The states of
the log are measured in turn, `--rounds` times; the figures are medians, of CPU the minimum. The rows that are
logged and dropped are counted, too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.serving import wrk
from benchmarks.serving.machine import choose_cores
from benchmarks.serving.protocols import Request
from tests.harness.machine import cpu_seconds, describe_machine
from tests.harness.models import cancer_forest
from tests.harness.server import Server, serving

SAMPLES = {"off": 0.0, "10 %": 0.1, "full": 1.0}
SETTINGS = "/v1/models/cancer/prediction-log"


class Round(NamedTuple):
    requests: int
    per_s: float
    cpu_us: float
    p99_ms: float


def measure(server: Server, script: Path, connections: int, seconds: int, core: int | None) -> Round:
    process = psutil.Process(server.process.pid)
    before = cpu_seconds(process)
    load = wrk.run(server.port, script, connections, seconds, core)
    if load.failures:
        raise SystemExit(f"{load.failures} requests failed")
    return Round(
        load.requests, load.per_s, (cpu_seconds(process) - before) / load.requests * 1e6, load.p99_ms
    )


def metric(server: Server, name: str) -> int:
    """Return the sum of a counter over its labels."""
    text = server.call("GET", "/metrics")[1].decode()
    return int(sum(float(v) for v in re.findall(rf"^{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE)))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    model, example, rows = cancer_forest()
    cores = choose_cores()
    rounds: dict[str, list[Round]] = {name: [] for name in SAMPLES}
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "home") as server:
        if cores.server is not None:
            os.sched_setaffinity(server.process.pid, {cores.server})
        server.publish("cancer", model, example, alias="champion")
        headers = {"Authorization": f"Bearer {server.key}"}
        bodies = [json.dumps({"instances": [row]}) for row in rows[:64]]
        script = Path(folder) / "requests.lua"
        script.write_text(wrk.script(Request("/v1/models/cancer/predict", bodies, None, headers)))
        measure(server, script, arguments.connections, 2, cores.load)  # warm up
        for _ in range(arguments.rounds):
            for name, sample in SAMPLES.items():
                server.call_json("PUT", SETTINGS, {"sample": sample})
                rounds[name].append(
                    measure(server, script, arguments.connections, arguments.seconds, cores.load)
                )
                server.call("GET", "/v1/models/cancer/predictions?from=2999-01-01T00:00:00Z")  # flushes
        logged = metric(server, "trivium_prediction_log_rows_total")
        dropped = metric(server, "trivium_prediction_log_dropped_rows_total")
        size = sum(f.stat().st_size for f in Path(folder).glob("home/predictions/*/*/*.parquet"))
    return {
        "cores": str(cores),
        "states": {name: summary(of_state) for name, of_state in rounds.items()},
        "full_requests": sum(r.requests for r in rounds["full"]),
        "logged": logged,
        "dropped": dropped,
        "bytes_per_row": round(size / max(1, logged)),
    }


def summary(rounds: list[Round]) -> dict[str, float]:
    return {
        "per_s": round(statistics.median(r.per_s for r in rounds)),
        "cpu_us": round(min(r.cpu_us for r in rounds), 1),
        "p99_ms": round(statistics.median(r.p99_ms for r in rounds), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the prediction log costs.")
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    report = run(arguments)
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{describe_machine()}; {report['cores']}\n")
    print(f"{'log':6} {'requests/s':>11} {'CPU us/request':>15} {'p99 ms':>8} {'of off':>7}")
    off = report["states"]["off"]
    for name, state in report["states"].items():
        share = state["per_s"] / off["per_s"]
        print(f"{name:6} {state['per_s']:11,} {state['cpu_us']:15} {state['p99_ms']:8} {share:7.1%}")
    print(
        f"\n{report['logged']:,} rows logged, {report['dropped']:,} dropped, "
        f"{report['bytes_per_row']} bytes each"
    )


if __name__ == "__main__":
    main()
