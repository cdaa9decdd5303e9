"""Compare the engines `local` and `ray` on this machine: the same job, alternating, in one run.

    python -m benchmarks.batch_ray [--rows 5000000] [--models forest-full logistic] [--rounds 2] [--json]

The worker has one lane per core, and Ray one actor per core. Ray is started for each job: `start` is the time
from the POST until the first partition starts. On a cluster that runs already this time is shorter.
`of_local` compares the engines without it, as for a large job.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.batch import noisy_rows, train, write_input
from registry.jobs.jobs import OPEN_STATES
from registry.vocabulary import ENGINES, LOCAL, RAY
from tests.harness.machine import describe_machine
from tests.harness.server import TRIVIUM, Server

Timing = dict[str, Any]


def time_job(server: Server, model: str, data: Path, engine: str) -> Timing:
    """Run a job; return the seconds until its end and until its first partition started."""
    body = {"kind": "score", "model": model, "input": {"uri": str(data)}, "engine": engine}
    start = time.monotonic()
    record = server.call_json("POST", "/v1/jobs", body)
    while record["state"] in OPEN_STATES:
        time.sleep(0.02)
        record = server.call_json("GET", f"/v1/jobs/{record['id']}")
    seconds = time.monotonic() - start
    if record["state"] != "done":
        raise RuntimeError(f"the job is {record['state']}: {record['error']}")
    first_start = min(datetime.fromisoformat(p["started_at"]) for p in record["partitions"])
    start_s = (first_start - datetime.fromisoformat(record["created_at"])).total_seconds()
    return {"seconds": seconds, "start": start_s, "output": record["manifest"]["sha256"]}


def compare(directory: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    data = directory / "data.parquet"
    write_input(data, options.rows, "parquet")
    results = []
    with Server(directory / "home", directory / "server.log", batch_roots=directory) as server:
        server.start()
        example = noisy_rows(200, 3).to_csv(index=False).encode()
        for name in options.models:
            server.publish(name, train(name), example, alias="champion")
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        environment |= {"TRIVIUM_HOME": str(server.home), "TRIVIUM_BATCH_ROOTS": str(directory)}
        with (directory / "worker.log").open("wb") as log:
            worker = subprocess.Popen([TRIVIUM, "worker"], env=environment, stderr=log)
        try:
            for name in options.models:
                time_job(server, name, data, LOCAL)  # warm-up: compiles and caches
                rounds = [
                    {engine: time_job(server, name, data, engine) for engine in ENGINES}
                    for _ in range(options.rounds)
                ]
                results.append({"model": name, "rows": options.rows, **summarize(rounds)})
                print(results[-1])
        finally:
            worker.terminate()
            worker.wait(60)
    return results


def summarize(rounds: list[dict[str, Timing]]) -> dict[str, Any]:
    """Return the figures of the fastest round of each engine."""
    if len({timing[engine]["output"] for timing in rounds for engine in timing}) != 1:
        raise RuntimeError("the engines did not write the same bytes")
    local, ray = (min((r[e] for r in rounds), key=lambda timing: timing["seconds"]) for e in (LOCAL, RAY))
    local_work_s, ray_work_s = (timing["seconds"] - timing["start"] for timing in (local, ray))
    return {
        "seconds": {LOCAL: round(local["seconds"], 1), RAY: round(ray["seconds"], 1)},
        "start": {LOCAL: round(local["start"], 1), RAY: round(ray["start"], 1)},
        "of_local": round(local_work_s / ray_work_s, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--models", nargs="+", default=["forest-full", "logistic"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="bench-ray-") as directory:
        results = compare(Path(directory), options)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
