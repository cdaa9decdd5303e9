"""A Prefect flow that has Trivium score a dataset every week, with three retries.

It needs `prefect` (3.x), `httpx`, and in the environment TRIVIUM_URL and TRIVIUM_API_KEY (scope batch).
The flow run's id is the idempotency key: a retry, whatever died before it, finds the job that the first try
started, resumes it if it has failed, and starts no second one.
"""

from __future__ import annotations

import argparse
import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.schedules import Interval

POLL_S = 2.0


@flow(name="trivium-score", retries=3, retry_delay_seconds=10)
def score(model: str, uri: str) -> str:
    """Score what is at `uri` (inside TRIVIUM_BATCH_ROOTS) with the champion; where the output is."""
    headers = {"Authorization": f"Bearer {os.environ['TRIVIUM_API_KEY']}"}
    with httpx.Client(base_url=os.environ["TRIVIUM_URL"], headers=headers, timeout=60) as trivium:
        job = start(
            trivium, {"kind": "score", "model": model, "input": {"uri": uri}}, f"prefect-{flow_run.id}"
        )
        get_run_logger().info("job %s scores %s with %s", job, uri, model)
        return wait(trivium, job)


def start(trivium: httpx.Client, request: dict[str, Any], key: str) -> int:
    """The id of the job that `key` stands for, at work."""
    job = answered(trivium.post("/v1/jobs", json=request, headers={"Idempotency-Key": key}))["id"]
    if answered(trivium.get(f"/v1/jobs/{job}"))["state"] in ("failed", "cancelled"):
        answered(trivium.post(f"/v1/jobs/{job}/resume"))
    return int(job)


def wait(trivium: httpx.Client, job: int) -> str:
    while (record := answered(trivium.get(f"/v1/jobs/{job}")))["state"] in ("queued", "running"):
        get_run_logger().info("job %s is %s: %s rows done", job, record["state"], record["rows_done"])
        time.sleep(POLL_S)
    if record["state"] != "done":
        raise RuntimeError(f"job {job} is {record['state']}: {record['error']}")
    get_run_logger().info("job %s: %s rows done, %s failed", job, record["rows_done"], record["rows_failed"])
    return str(record["output"])


def answered(response: httpx.Response) -> dict[str, Any]:
    if response.is_error:
        raise RuntimeError(f"{response.request.url}: {response.status_code} {response.text}")
    found: dict[str, Any] = response.json()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("uri", help="file:///data/transactions/, s3://bucket/transactions.parquet, ...")
    parser.add_argument("--first-in", type=float, default=15, help="seconds until the first run")
    args = parser.parse_args()
    first = datetime.now(UTC) + timedelta(seconds=args.first_in)
    weekly = Interval(timedelta(weeks=1), anchor_date=first)
    score.serve(name="weekly", schedules=[weekly], parameters={"model": args.model, "uri": args.uri})


if __name__ == "__main__":
    main()
