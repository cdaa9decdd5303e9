"""The same job by the engines `local` and `ray` on this machine, in one run, taking turns.

    python -m benchmarks.batch_ray [--rows 5000000] [--models forest-full logistic] [--rounds 2] [--json]

One worker with a lane, and a Ray with an actor, for each core. Ray is started for the job: `start` is how
long it took from the POST until the first partition was begun; on a cluster that runs already it is shorter.
`of_local` leaves it out: what Ray costs where there is much to do.
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
from tests.harness.machine import describe_machine
from tests.harness.server import TRIVIUM, Server


def job(server: Server, model: str, data: Path, engine: str) -> dict[str, float]:
    """Seconds until the output is there, and until the first partition was begun."""
    body = {"kind": "score", "model": model, "input": {"uri": str(data)}, "engine": engine}
    start = time.monotonic()
    record = server.call_json("POST", "/v1/jobs", body)
    while record["state"] in ("queued", "running"):
        time.sleep(0.02)
        record = server.call_json("GET", f"/v1/jobs/{record['id']}")
    seconds = time.monotonic() - start
    if record["state"] != "done":
        raise RuntimeError(f"the job is {record['state']}: {record['error']}")
    begun = min(datetime.fromisoformat(p["started_at"]) for p in record["partitions"])
    until = (begun - datetime.fromisoformat(record["created_at"])).total_seconds()
    return {"seconds": seconds, "start": until, "output": record["manifest"]["sha256"]}


def compare(place: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    data = place / "data.parquet"
    write_input(data, options.rows, "parquet")
    results = []
    with Server(place / "home", place / "server.log", batch_roots=place) as server:
        server.start()
        example = noisy_rows(200, 3).to_csv(index=False).encode()
        for name in options.models:
            server.publish(name, train(name), example, alias="champion")
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        environment |= {"TRIVIUM_HOME": str(server.home), "TRIVIUM_BATCH_ROOTS": str(place)}
        with (place / "worker.log").open("wb") as log:
            worker = subprocess.Popen([TRIVIUM, "worker"], env=environment, stderr=log)
        try:
            for name in options.models:
                job(server, name, data, "local")  # what is compiled and cached once
                turns = [
                    {e: job(server, name, data, e) for e in ("local", "ray")} for _ in range(options.rounds)
                ]
                results.append({"model": name, "rows": options.rows, **_ratios(turns)})
                print(results[-1])
        finally:
            worker.terminate()
            worker.wait(60)
    return results


def _ratios(turns: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Of the best turn of each."""
    if len({t[engine]["output"] for t in turns for engine in t}) != 1:
        raise RuntimeError("the engines did not write the same bytes")
    local, ray = (min((t[e] for t in turns), key=lambda ran: ran["seconds"]) for e in ("local", "ray"))
    work = {"local": local["seconds"] - local["start"], "ray": ray["seconds"] - ray["start"]}
    return {
        "seconds": {"local": round(local["seconds"], 1), "ray": round(ray["seconds"], 1)},
        "start": {"local": round(local["start"], 1), "ray": round(ray["start"], 1)},
        "of_local": round(work["local"] / work["ray"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--models", nargs="+", default=["forest-full", "logistic"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="bench-ray-") as place:
        found = compare(Path(place), options)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
