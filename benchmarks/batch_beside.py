"""Do online predictions and new jobs wait for a job that is running?

    python -m benchmarks.batch_beside [--rows 10000000] [--jobs 30] [--seconds 10] [--json]

Single-row predictions are sent one after the other, 100 a second, first with nothing beside them, then while
the server's worker is at a job, at several priorities of that worker (0 is the server's own). Then jobs are
enqueued while one runs. `rows/s` is how fast the job is meanwhile: what a low priority costs it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from registry.jobs.jobs import OPEN_STATES
from tests.harness.job_site import MODEL, JobSite, base_rows, processed_rows
from tests.harness.machine import describe_machine

PAUSE_S = 0.01
ENQUEUED = 20


def predictions(site: JobSite, seconds: float) -> dict[str, float]:
    """Milliseconds of one prediction."""
    connection = http.client.HTTPConnection("127.0.0.1", site.server.port)
    body = json.dumps({"instances": [base_rows().iloc[0].to_dict()]})
    headers = {"Authorization": f"Bearer {site.server.key}", "Content-Type": "application/json"}
    took = []
    until = time.monotonic() + seconds
    while (start := time.monotonic()) < until:
        connection.request("POST", f"/v1/models/{MODEL}/predict", body, headers)
        answer = connection.getresponse()
        answer.read()
        took.append(1000 * (time.monotonic() - start))
        if answer.status != 200:
            raise RuntimeError(f"predict: {answer.status}")
        time.sleep(max(0.0, PAUSE_S - (time.monotonic() - start)))
    connection.close()
    return {f"p{p}": round(float(np.percentile(took, p)), 2) for p in (50, 95, 99)}


def beside(site: JobSite, ids: list[int], lanes: list[int], nice: int, seconds: float) -> dict[str, float]:
    """The same while jobs run, with the worker's lanes at that priority."""
    for thread in lanes:
        os.setpriority(os.PRIO_PROCESS, thread, nice)
    before, start = sum(processed_rows(site.job(i)) for i in ids), time.monotonic()
    found = predictions(site, seconds)
    done = sum(processed_rows(site.job(i)) for i in ids) - before
    if site.job(ids[-1])["state"] not in OPEN_STATES:
        raise RuntimeError("the jobs were over too soon: ask for more --jobs")
    return found | {"rows/s": round(done / (time.monotonic() - start))}


def enqueue(site: JobSite) -> dict[str, float]:
    """Milliseconds until a new job is accepted, while one runs: with its first rows read."""
    took = []
    for _ in range(ENQUEUED):
        start = time.monotonic()
        job_id = site.start_job()
        took.append(1000 * (time.monotonic() - start))
        site.server.call_json("POST", f"/v1/jobs/{job_id}/cancel")
    return {f"p{p}": round(float(np.percentile(took, p)), 1) for p in (50, 100)}


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--rows", type=int, default=10_000_000)
    asked.add_argument("--jobs", type=int, default=30, help="one after the other")
    asked.add_argument("--seconds", type=float, default=10.0)
    asked.add_argument("--json", action="store_true")
    given = asked.parse_args()
    figures: dict[str, dict[str, float]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        JobSite(Path(folder), given.rows, worker=True).running() as site,
    ):
        site.wait_for_server_worker()
        predictions(site, 2.0)
        figures["predict alone"] = predictions(site, given.seconds)
        ids = [site.start_job() for _ in range(given.jobs)]
        site.wait_until_under_way(ids[0], 0.02)
        threads = [t.id for t in site.wait_for_server_worker().threads()]
        lanes = [t for t in threads if os.getpriority(os.PRIO_PROCESS, t) > 0]
        for nice in (0, 5, 10, 15):
            figures[f"predict beside a job, nice {nice}"] = beside(site, ids, lanes, nice, given.seconds)
        figures["enqueue beside a job"] = enqueue(site)
        for job_id in ids:
            if site.job(job_id)["state"] in OPEN_STATES:
                site.server.call_json("POST", f"/v1/jobs/{job_id}/cancel")
        figures["enqueue alone"] = enqueue(site)
    print(
        json.dumps(figures)
        if given.json
        else "\n".join([describe_machine(), *(f"{k}: {v}" for k, v in figures.items())])
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
