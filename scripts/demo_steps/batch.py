"""Batch: score a million rows as a job, then a weekly schedule whose first run is due in a second."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_breast_cancer

from demo_steps import FILES, Failed, print_step
from demo_steps.online import EXAMPLE, NAME, TARGET, TOLERANCE, predict_body
from service.cli.progress import job_progress
from service.client import Client, ModelRef, Record, ServerRefused, download, jobs, path

ROWS = 1_000_000
ROW_GROUP = 100_000
CHECKED = 500
"""Rows whose scores are compared with online predictions."""
ID = "patient"
PATIENTS = FILES / "million.parquet"
SCORES = FILES / "scores.parquet"
WEEKLY = f"{NAME}-weekly"
WEEK_S = 7 * 24 * 3600
FIRST_RUN_IN_S = 1
JOB_TIMEOUT_S = 600.0
FIRST_RUN_TIMEOUT_S = 60.0


def run_batch(client: Client) -> None:
    """Score the rows and compare, then wait for the first run of a schedule. Raises `Failed`."""
    _write_patients()
    record = _follow(client, jobs.start(client, _score_request(PATIENTS, id_column=ID)))
    download.save(client, record["output"], SCORES)
    scores = pq.read_table(SCORES)
    in_order = len(scores) == ROWS and bool((scores[ID].to_numpy() == np.arange(ROWS)).all())
    summary, agrees = _compare_with_online(client, scores)
    counts = f"{record['rows_done']:,} rows in {record['partitions_total']} partitions"
    order = "once and in order" if in_order else "NOT once and in order"
    print_step("Scored", f"{counts}, {record['rate']:,.0f} rows/s: {SCORES},\neach row {order}; {summary}")
    if not (in_order and agrees):
        raise Failed("the job's scores differ from the online predictions")
    _run_schedule(client)


def _write_patients() -> None:
    """Write the input. Each patient mixes two rows of the data set: 80 % of the values from the first one."""
    if PATIENTS.exists():
        print_step("Created", f"already: {PATIENTS}")
        return
    start = time.perf_counter()
    data = load_breast_cancer(as_frame=True).data
    random, features = np.random.default_rng(0), np.arange(data.shape[1])
    schema = pa.schema([(ID, pa.int64()), *((name, pa.float64()) for name in data.columns)])
    partial = PATIENTS.with_suffix(".part")
    with pq.ParquetWriter(partial, schema) as out:
        for first in range(0, ROWS, ROW_GROUP):
            pair = random.integers(len(data), size=(2, ROW_GROUP, 1))
            source = np.where(random.random((ROW_GROUP, len(features))) < 0.8, *pair)
            block = pd.DataFrame(data.to_numpy()[source, features], columns=data.columns)
            block.insert(0, ID, np.arange(first, first + ROW_GROUP))
            table = pa.Table.from_pandas(block, schema, preserve_index=False)
            out.write_table(table, row_group_size=ROW_GROUP)
    partial.replace(PATIENTS)
    seconds, size = time.perf_counter() - start, PATIENTS.stat().st_size / 1e6
    print_step(
        "Created", f"{ROWS:,} rows x {len(features)} features in {seconds:.1f} s: {PATIENTS}, {size:.0f} MB"
    )


def _score_request(rows: Path, media_type: str = "application/vnd.apache.parquet", **fields: Any) -> Record:
    """Return the request of a job. The server reads the file in place: it is below a batch root."""
    location = {"uri": rows.resolve().as_uri()}
    return {"kind": "score", "model": NAME, "input": location, "output": {"media_type": media_type}, **fields}


def _follow(client: Client, job: Record) -> Record:
    """Show the job's progress and return its record when it is done. Raises `Failed`."""
    deadline = time.monotonic() + JOB_TIMEOUT_S
    with job_progress(print_line=lambda line: print_step("", line)) as show:

        def on_record(record: Record) -> None:
            show(record)
            if time.monotonic() > deadline:
                raise Failed(f"job {job['id']} is still {record['state']}; see trivium jobs show {job['id']}")

        record = jobs.wait(client, job["id"], on_record, lambda message: print_step("", message))
    if record["state"] != "done" or record["rows_failed"]:
        reason = record["error"] or f"{record['rows_failed']} rows could not be scored"
        raise Failed(f"job {job['id']} is {record['state']}: {reason}{_hint(reason)}")
    return record


def _hint(reason: str) -> str:
    """Return a hint for the case that another server's worker took the job: it has other batch roots."""
    if "batch root" not in reason:
        return ""
    return "; if another server uses this data directory, stop it and run the demo again"


def _compare_with_online(client: Client, scores: pa.Table) -> tuple[str, bool]:
    """Compare some scores with online predictions: a summary, and whether they agree."""
    positions = np.linspace(0, ROWS - 1, CHECKED).astype(int)
    rows = pq.read_table(PATIENTS).take(positions).to_pandas().drop(columns=ID)
    online = client.predict(ModelRef(NAME), predict_body(rows))["predictions"]
    batch = scores.take(positions).to_pandas()
    same = int(np.sum(batch["label"].to_numpy() == [p["label"] for p in online]))
    difference = max(
        float(np.abs(batch[f"probability.{name}"] - [p["probabilities"][name] for p in online]).max())
        for name in online[0]["probabilities"]
    )
    summary = (
        f"{same} of {CHECKED} labels equal the online predictions,\n"
        f"largest difference of a probability {difference:.1g}"
    )
    return summary, same == CHECKED and difference < TOLERANCE


def _run_schedule(client: Client) -> None:
    """Create the weekly schedule, which scores the hold-out, and wait for its first run. Raises `Failed`."""
    request = _score_request(EXAMPLE, "text/csv", passthrough=[TARGET])
    earlier_runs = _set_schedule(client, request)
    print_step("Scheduled", f"{WEEKLY}: every week, for the first time in {FIRST_RUN_IN_S} s")
    run = _wait_for_new_run(client, earlier_runs)
    record = _follow(client, {"id": run["job"]})
    content = b"".join(download.verified_blocks(client, download.head(client, record["output"])))
    scores = pd.read_csv(pa.BufferReader(content))
    accuracy = (scores["label"] == scores[TARGET]).mean()
    print_step(
        "Ran",
        f"job {record['id']}, started by {record['schedule']}: accuracy {accuracy:.3f} on {len(scores)} rows",
    )


def _set_schedule(client: Client, request: Record) -> set[int]:
    """Create the schedule, or set its next run to `FIRST_RUN_IN_S` from now; return the ids of its runs."""
    times = {"every_s": WEEK_S, "start_in_s": FIRST_RUN_IN_S}
    try:
        runs = {run["id"] for run in client.pages(path("schedules", WEEKLY, "runs"))["items"]}
        client.call("PATCH", path("schedules", WEEKLY), {"job": request, **times})
    except ServerRefused as error:
        if error.status != 404:
            raise
        client.create(path("schedules"), {"name": WEEKLY, "job": request, **times})
        return set()
    return runs


def _wait_for_new_run(client: Client, earlier_runs: set[int]) -> Record:
    """Return the first started run that is not one of `earlier_runs`. Raises `Failed`."""
    deadline = time.monotonic() + FIRST_RUN_TIMEOUT_S
    while time.monotonic() < deadline:
        for run in client.pages(path("schedules", WEEKLY, "runs"))["items"]:
            if run["id"] not in earlier_runs and run["outcome"] == "started":
                return dict(run)
        time.sleep(0.2)
    raise Failed(f"the schedule {WEEKLY} started no job within {FIRST_RUN_TIMEOUT_S:.0f} s")
