"""An Airflow 3 DAG that has Trivium score a dataset every week.

It needs TRIVIUM_URL and TRIVIUM_API_KEY (scope batch) in the environment of Airflow's workers; httpx comes
with Airflow. The run's id is the idempotency key: a task that is tried again, or a run that is cleared, finds
the job that the first try started, resumes it if it has failed, and starts no second one.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from airflow.sdk import PokeReturnValue, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

TRIES = {"retries": 3, "retry_delay": timedelta(seconds=10)}


@dag(
    schedule="@weekly",
    start_date=datetime(2026, 11, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args=TRIES,
)
def trivium_score(model: str = "fraud", uri: str = "file:///data/transactions/") -> None:
    """Score what is at `uri` (inside TRIVIUM_BATCH_ROOTS) with the champion of `model`."""

    @task
    def start(model: str, uri: str) -> int:
        """The id of this run's job, at work."""
        context = get_current_context()
        key = f"airflow-{context['dag'].dag_id}-{context['run_id']}"
        request = {"kind": "score", "model": model, "input": {"uri": uri}}
        job = int(call("POST", "/v1/jobs", json=request, headers={"Idempotency-Key": key})["id"])
        if call("GET", f"/v1/jobs/{job}")["state"] in ("failed", "cancelled"):
            call("POST", f"/v1/jobs/{job}/resume")
        return job

    @task.sensor(mode="reschedule", poke_interval=30, timeout=24 * 3600)
    def done(job: int) -> PokeReturnValue:
        """Waits without holding a worker; answers where the output is."""
        record = call("GET", f"/v1/jobs/{job}")
        if record["state"] in ("failed", "cancelled"):
            raise AirflowFailException(f"job {job} is {record['state']}: {record['error']}")
        return PokeReturnValue(record["state"] == "done", record["output"])

    done(start(model, uri))


def call(method: str, path: str, **more: Any) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {os.environ['TRIVIUM_API_KEY']}", **more.pop("headers", {})}
    url = os.environ["TRIVIUM_URL"].rstrip("/") + path
    response = httpx.request(method, url, headers=headers, timeout=60, **more)
    if response.is_error:
        raise RuntimeError(f"{method} {path}: {response.status_code} {response.text}")
    found: dict[str, Any] = response.json()
    return found


trivium_score()
