"""The batch road: a million rows in a file, scored by the worker; then a weekly schedule due in 5 seconds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_breast_cancer

from demo_steps import FILES, Failed, say
from demo_steps.online import EXAMPLE, NAME, TARGET, TOLERANCE, body
from service.cli.progress import job_progress
from service.client import Client, ModelRef, Record, ServerRefused, download, jobs, path

ROWS = 1_000_000
BLOCK = 100_000  # rows made, written and later scored at once
CHECKED = 500  # rows that the online road is asked for, too
ID = "patient"
PATIENTS = FILES / "million.parquet"
SCORES = FILES / "scores.parquet"
WEEKLY = f"{NAME}-weekly"
WEEK_S = 7 * 24 * 3600
FIRST_IN_S = 5
DONE_S = 600.0  # longest that a job may take here
DUE_S = 60.0  # by then the first run has been started, or nobody starts any


def road(client: Client) -> None:
    """Scores the million and compares, then sees a schedule's first job done. Raises `Failed`."""
    _make()
    record = _followed(client, jobs.start(client, _request(PATIENTS, id_column=ID)))
    download.save(client, record["output"], SCORES)
    scores = pq.read_table(SCORES).to_pandas()
    in_order = len(scores) == ROWS and bool((scores[ID] == np.arange(ROWS)).all())
    words, agrees = _agreement(client, scores)
    counts = f"{record['rows_done']:,} rows in {record['partitions_total']} partitions"
    order = "once and in order" if in_order else "NOT once and in order"
    say("Scored", f"{counts}, {record['rate']:,.0f} rows/s: {SCORES},\neach row {order}; {words}")
    if not (in_order and agrees):
        raise Failed("the batch road's answers are not the online road's")
    _schedule(client)


def _make() -> None:
    """Each patient is two of the data set: most measurements are the one's, a fifth is the other's."""
    if PATIENTS.exists():
        say("Made", f"already: {PATIENTS}")
        return
    started = time.perf_counter()
    known = load_breast_cancer(as_frame=True).data
    chance, features = np.random.default_rng(0), np.arange(known.shape[1])
    schema = pa.schema([(ID, pa.int64()), *((name, pa.float64()) for name in known.columns)])
    part = PATIENTS.with_suffix(".part")
    with pq.ParquetWriter(part, schema) as out:
        for start in range(0, ROWS, BLOCK):
            two = chance.integers(len(known), size=(2, BLOCK, 1))
            chosen = np.where(chance.random((BLOCK, len(features))) < 0.8, *two)
            block = pd.DataFrame(known.to_numpy()[chosen, features], columns=known.columns)
            block.insert(0, ID, np.arange(start, start + BLOCK))
            out.write_table(pa.Table.from_pandas(block, schema, preserve_index=False), row_group_size=BLOCK)
    part.replace(PATIENTS)
    took, size = time.perf_counter() - started, PATIENTS.stat().st_size / 1e6
    say("Made", f"{ROWS:,} rows x {len(features)} features in {took:.1f} s: {PATIENTS}, {size:.0f} MB")


def _request(rows: Path, media_type: str = "application/vnd.apache.parquet", **more: Any) -> Record:
    """The server reads the file where it is: its directory is one of the demo server's batch roots."""
    place = {"uri": rows.resolve().as_uri()}
    return {"kind": "score", "model": NAME, "input": place, "output": {"media_type": media_type}, **more}


def _followed(client: Client, job: Record) -> Record:
    given_up = time.monotonic() + DONE_S
    with job_progress(print_line=lambda line: say("", line)) as show:

        def seen(record: Record) -> None:
            show(record)
            if time.monotonic() > given_up:
                raise Failed(f"job {job['id']} is still {record['state']}; trivium jobs show {job['id']}")

        record = jobs.wait(client, job["id"], seen, lambda words: say("", words))
    if record["state"] != "done" or record["rows_failed"]:
        why = record["error"] or f"{record['rows_failed']} rows could not be scored"
        raise Failed(f"job {job['id']} is {record['state']}: {why}{_other(why)}")
    return record


def _other(why: str) -> str:
    """Workers of one data directory share its jobs, and each reads in its own roots alone."""
    return "; does another server run on this data directory? Stop it" if "no batch root" in why else ""


def _agreement(client: Client, scores: pd.DataFrame) -> tuple[str, bool]:
    """Does the online road answer some of the rows alike? In words, and yes or no."""
    asked = np.linspace(0, ROWS - 1, CHECKED).astype(int)
    rows = pq.read_table(PATIENTS).take(asked).to_pandas().drop(columns=ID)
    online = client.predict(ModelRef(NAME), body(rows))["predictions"]
    batch = scores.iloc[asked]
    same = int(np.sum(batch["label"].to_numpy() == [p["label"] for p in online]))
    apart = max(
        float(np.abs(batch[f"probability.{name}"] - [p["probabilities"][name] for p in online]).max())
        for name in online[0]["probabilities"]
    )
    words = (
        f"{same} of {CHECKED} labels are the online road's,\nlargest difference of a probability {apart:.1g}"
    )
    return words, same == CHECKED and apart < TOLERANCE


def _schedule(client: Client) -> None:
    """Every week, for the first time in five seconds: scores the hold-out, whose labels are known."""
    request = _request(EXAMPLE, "text/csv", passthrough=[TARGET])
    before = _set_up(client, request)
    say("Scheduled", f"{WEEKLY}: every week, for the first time in {FIRST_IN_S} s")
    run = _first_run(client, before)
    record = _followed(client, {"id": run["job"]})
    scores = pd.read_csv(
        pa.BufferReader(b"".join(download.verified_blocks(client, download.head(client, record["output"]))))
    )
    accuracy = (scores["label"] == scores[TARGET]).mean()
    say(
        "Ran",
        f"job {record['id']}, started by {record['schedule']}: accuracy {accuracy:.3f} on {len(scores)} rows",
    )


def _set_up(client: Client, request: Record) -> set[int]:
    """The schedule, new or moved to five seconds from now; the ids of the runs that it had."""
    times = {"every_s": WEEK_S, "start_in_s": FIRST_IN_S}
    try:
        runs = {run["id"] for run in client.pages(path("schedules", WEEKLY, "runs"))["items"]}
        client.call("PATCH", path("schedules", WEEKLY), {"job": request, **times})
    except ServerRefused as error:
        if error.status != 404:
            raise
        client.create(path("schedules"), {"name": WEEKLY, "job": request, **times})
        return set()
    return runs


def _first_run(client: Client, before: set[int]) -> Record:
    """The first run that is not one of those `before`."""
    given_up = time.monotonic() + DUE_S
    while time.monotonic() < given_up:
        for run in client.pages(path("schedules", WEEKLY, "runs"))["items"]:
            if run["id"] not in before and run["outcome"] == "started":
                return dict(run)
        time.sleep(0.2)
    raise Failed(f"nobody started {WEEKLY}")
