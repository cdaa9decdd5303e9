"""How much does a running job delay online predictions and new jobs?

    python -m benchmarks.batch_beside [--rows 10000000] [--jobs 30] [--seconds 10] [--json]

Sends single-row predictions one after another, 100 per second: first without a job, then while the server's
worker runs one, with several priorities of the worker's lanes (0 is the priority of the server). Then starts
new jobs while a job runs. `rows/s` is the speed of the job during each measurement: the cost of a low
priority.
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

INTERVAL_S = 0.01
NEW_JOBS = 20


def measure_predictions(site: JobSite, seconds: float) -> dict[str, float]:
    """Return percentiles of the latency of one prediction, in milliseconds."""
    connection = http.client.HTTPConnection("127.0.0.1", site.server.port)
    body = json.dumps({"instances": [base_rows().iloc[0].to_dict()]})
    headers = {"Authorization": f"Bearer {site.server.key}", "Content-Type": "application/json"}
    latencies_ms = []
    deadline = time.monotonic() + seconds
    while (start := time.monotonic()) < deadline:
        connection.request("POST", f"/v1/models/{MODEL}/predict", body, headers)
        response = connection.getresponse()
        response.read()
        latencies_ms.append(1000 * (time.monotonic() - start))
        if response.status != 200:
            raise RuntimeError(f"predict: {response.status}")
        time.sleep(max(0.0, INTERVAL_S - (time.monotonic() - start)))
    connection.close()
    return {f"p{p}": round(float(np.percentile(latencies_ms, p)), 2) for p in (50, 95, 99)}


def measure_beside_jobs(
    site: JobSite, job_ids: list[int], lanes: list[int], nice: int, seconds: float
) -> dict[str, float]:
    """Measure predictions and the speed of the running jobs. `lanes`: ids of the lanes' threads."""
    for thread_id in lanes:
        os.setpriority(os.PRIO_PROCESS, thread_id, nice)
    rows_before, start = sum(processed_rows(site.job(i)) for i in job_ids), time.monotonic()
    figures = measure_predictions(site, seconds)
    rows = sum(processed_rows(site.job(i)) for i in job_ids) - rows_before
    if site.job(job_ids[-1])["state"] not in OPEN_STATES:
        raise RuntimeError("the jobs ended too soon: increase --jobs")
    return figures | {"rows/s": round(rows / (time.monotonic() - start))}


def measure_new_jobs(site: JobSite) -> dict[str, float]:
    """Return percentiles of the time until a new job is accepted, in milliseconds.

    The time includes reading its first rows.
    """
    latencies_ms = []
    for _ in range(NEW_JOBS):
        start = time.monotonic()
        job_id = site.start_job()
        latencies_ms.append(1000 * (time.monotonic() - start))
        site.server.call_json("POST", f"/v1/jobs/{job_id}/cancel")
    return {f"p{p}": round(float(np.percentile(latencies_ms, p)), 1) for p in (50, 100)}


def measure(site: JobSite, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = {}
    site.wait_for_server_worker()
    measure_predictions(site, 2.0)
    figures["predict alone"] = measure_predictions(site, options.seconds)
    job_ids = [site.start_job() for _ in range(options.jobs)]
    site.wait_until_under_way(job_ids[0], 0.02)
    threads = [t.id for t in site.wait_for_server_worker().threads()]
    lanes = [t for t in threads if os.getpriority(os.PRIO_PROCESS, t) > 0]
    for nice in (0, 5, 10, 15):
        name = f"predict beside a job, nice {nice}"
        figures[name] = measure_beside_jobs(site, job_ids, lanes, nice, options.seconds)
    figures["enqueue beside a job"] = measure_new_jobs(site)
    for job_id in job_ids:
        if site.job(job_id)["state"] in OPEN_STATES:
            site.server.call_json("POST", f"/v1/jobs/{job_id}/cancel")
    figures["enqueue alone"] = measure_new_jobs(site)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--jobs", type=int, default=30, help="jobs to run one after another")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        JobSite(Path(directory), options.rows, worker=True).running() as site,
    ):
        figures = measure(site, options)
    lines = [describe_machine(), *(f"{name}: {values}" for name, values in figures.items())]
    print(json.dumps(figures) if options.json else "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
