"""Score a large file in three ways: a Trivium job, pandas with joblib, and the model alone in memory.

    python -m benchmarks.batch [--rows 10000000] [--models forest-10 forest-full logistic]
                               [--formats parquet csv] [--memory] [--json]

- `article`: pandas reads the complete file, the joblib model scores it on all cores, and pandas writes labels
  and probabilities. Many articles on batch scoring do this.
- `bare`: the fastest runtime for the model, on one thread per core, over a float64 matrix that is already in
  memory. Nothing is read or written. This is the upper limit for a job.
- `trivium`: the time from `POST /v1/jobs` until the output is complete, for the first job of a worker with
  one lane per core; `again`: the second job of the same worker.

Each way runs in its own process; memory is the peak of that process (of the worker for Trivium). `--memory`
scores 1 to 20 million rows to show whether a worker's memory grows. The data are rows of the breast cancer
data set with noise, 30 columns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from registry.media_types import CSV, PARQUET
from tests.harness.machine import describe_machine
from tests.harness.server import TRIVIUM, Server

CHUNK = 1_000_000
MEDIA_TYPES = {"parquet": PARQUET, "csv": CSV}
BARE_ROWS = 2_000_000
BARE_ROUNDS = 5
POLL_S = 0.1  # requests take CPU time from the job: at 0.02 a tenth of two cores


def noisy_rows(rows: int, seed: int) -> Any:
    """Return `rows` rows similar to the breast cancer data, which has only 569."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer(as_frame=True).data
    random = np.random.default_rng(seed)
    sample = data.sample(rows, replace=True, random_state=seed).reset_index(drop=True)
    return (sample * random.normal(1, 0.1, sample.shape)).round(5)


def write_input(path: Path, rows: int, form: str) -> None:
    """Write the input as Parquet in row groups of a million rows, or as CSV. Two million rows are
    repeated."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    tables = [pa.Table.from_pandas(noisy_rows(CHUNK, seed), preserve_index=False) for seed in range(2)]
    schema = tables[0].schema
    writer = pq.ParquetWriter(path, schema) if form == "parquet" else pyarrow.csv.CSVWriter(path, schema)
    with writer:
        for start in range(0, rows, CHUNK):
            writer.write_table(tables[start // CHUNK % 2].slice(0, min(CHUNK, rows - start)))


def train(kind: str) -> Any:
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = load_breast_cancer(as_frame=True)
    noisy = noisy_rows(20_000, 9)
    labels = RandomForestClassifier(20, random_state=0).fit(data.data, data.target).predict(noisy)
    flipped = np.where(np.random.default_rng(0).random(len(labels)) < 0.1, 1 - labels, labels)
    models = {
        "forest-10": lambda: RandomForestClassifier(100, max_depth=10, random_state=0),
        "forest-full": lambda: RandomForestClassifier(100, random_state=0, min_samples_leaf=5),
        "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
    }
    return models[kind]().fit(noisy, flipped)


def run_article(model: Path, data: Path, form: str, out: Path) -> dict[str, float]:
    """Score the file with pandas and joblib on all cores."""
    import joblib
    import pandas as pd

    start = time.monotonic()
    loaded = joblib.load(model)
    if "n_jobs" in loaded.get_params():
        loaded.set_params(n_jobs=-1)
    rows = pd.read_parquet(data) if form == "parquet" else pd.read_csv(data)
    probabilities = loaded.predict_proba(rows)
    output = pd.DataFrame({"label": loaded.classes_[probabilities.argmax(axis=1)]})
    output[[f"probability.{c}" for c in loaded.classes_]] = probabilities
    output.to_parquet(out) if form == "parquet" else output.to_csv(out, index=False)
    return {"seconds": time.monotonic() - start, "rows": len(rows)}


def run_bare(home: Path, model: str) -> dict[str, float]:
    """Score `BARE_ROWS` rows in memory `BARE_ROUNDS` times with a job's runtime, one block per core at a
    time."""
    from registry import db
    from registry.artifacts import Store
    from registry.rows import Rows
    from registry.tables import ModelRow, VersionRow
    from service.config import Settings
    from service.runtime.isolated_runtime import Isolation
    from service.runtime.loading import BulkLoader

    settings = Settings(home=home)
    sessions = db.sessions(db.connect(settings.url))
    with db.reading(sessions) as session:
        version = session.query(VersionRow.id).join(ModelRow).filter(ModelRow.name == model).scalar()
    runtime = BulkLoader(sessions, Store(settings.blobs), Isolation(_no_child, 0, 30.0))(version)
    matrix = np.ascontiguousarray(noisy_rows(BARE_ROWS, 1).to_numpy(dtype=np.float64))
    blocks = [Rows(matrix=matrix[at : at + 65_536]) for at in range(0, len(matrix), 65_536)]
    runtime.run(blocks[0])
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        start = time.monotonic()
        for _ in pool.map(runtime.run, blocks * BARE_ROUNDS):
            pass
    return {"seconds": time.monotonic() - start, "rows": len(matrix) * BARE_ROUNDS}


def _no_child() -> Any:
    raise RuntimeError("this model has neither a node table nor an ONNX graph")


def run_jobs(
    server: Server, model: str, data: Path, form: str, expected: int, count: int
) -> list[dict[str, float]]:
    """Run `count` jobs one after another on a new worker, and measure the worker's peak memory."""
    environment = os.environ | {"TRIVIUM_HOME": str(server.home), "TRIVIUM_BATCH_ROOTS": str(data.parent)}
    log_file = data.parent / "worker.log"
    with log_file.open("wb") as log:
        worker = subprocess.Popen([TRIVIUM, "worker"], env=environment, stderr=log)
    try:
        while b"worker.started" not in log_file.read_bytes() and worker.poll() is None:
            time.sleep(0.05)
        results = []
        for _ in range(count):
            seconds = _run_job(server, model, data, form, expected)
            results.append({"seconds": seconds, "rows": expected, "memory_mb": _peak_mb(worker.pid)})
        return results
    finally:
        worker.terminate()
        worker.wait(60)
        log_file.unlink()


def _run_job(server: Server, model: str, data: Path, form: str, expected: int) -> float:
    """Return the seconds until the job is done."""
    body = {
        "kind": "score",
        "model": model,
        "input": {"uri": str(data)},
        "output": {"media_type": MEDIA_TYPES[form]},
    }
    start = time.monotonic()
    record = server.call_json("POST", "/v1/jobs", body)
    while record["state"] in ("queued", "running"):
        time.sleep(POLL_S)
        record = server.call_json("GET", f"/v1/jobs/{record['id']}")
    if record["state"] != "done" or record["rows_done"] != expected:
        raise RuntimeError(f"the job is {record['state']}: {record['error']}")
    return time.monotonic() - start


def _peak_mb(pid: int) -> float:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


def in_child_process(*arguments: object) -> dict[str, float]:
    """Run `run_article` or `run_bare` in its own process, and add the peak memory of the process."""
    command = [sys.executable, "-m", "benchmarks.batch", "--child", *map(str, arguments)]
    process = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return result


def run_child(way: str, arguments: Sequence[str]) -> None:
    if way == "article":
        model, data, form, out = arguments
        result = run_article(Path(model), Path(data), form, Path(out))
    else:
        result = run_bare(Path(arguments[0]), arguments[1])
    result["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result))


def compare(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Score each format with each model in the three ways."""
    import joblib

    results = []
    with Server(folder / "home", folder / "server.log", batch_roots=folder) as server:
        server.start()
        for name in options.models:
            model = train(name)
            joblib.dump(model, folder / f"{name}.joblib")
            server.publish(name, model, noisy_rows(200, 3).to_csv(index=False).encode(), alias="champion")
        for form in options.formats:
            data = folder / f"data.{form}"
            write_input(data, options.rows, form)
            for name in options.models:
                first, again = run_jobs(server, name, data, form, options.rows, 2)
                ways = {
                    "article": in_child_process(
                        "article", folder / f"{name}.joblib", data, form, folder / "out"
                    ),
                    "bare": in_child_process("bare", server.home, name),
                    "trivium": first,
                    "again": again,
                }
                load = round(os.getloadavg()[1], 1)
                results.append({"model": name, "format": form, "load": load, **_ratios(ways)})
                print_result(results[-1])
            data.unlink()
    return results


def _ratios(ways: dict[str, dict[str, float]]) -> dict[str, Any]:
    speed = {way: result["rows"] / result["seconds"] for way, result in ways.items()}
    return {
        "rows_per_s": {way: round(s) for way, s in speed.items()},
        "memory_mb": {way: round(result["memory_mb"]) for way, result in ways.items()},
        "times_the_article": round(speed["trivium"] / speed["article"], 2),
        "of_the_bare_limit": round(speed["trivium"] / speed["bare"], 2),
        "again_of_the_bare_limit": round(speed["again"] / speed["bare"], 2),
    }


def measure_memory(folder: Path, forms: Sequence[str], sizes: Sequence[int]) -> dict[str, dict[int, float]]:
    """Return a worker's peak memory in MB by format and number of rows."""
    peaks: dict[str, dict[int, float]] = {form: {} for form in forms}
    with Server(folder / "home", folder / "server.log", batch_roots=folder) as server:
        server.start()
        example = noisy_rows(200, 3).to_csv(index=False).encode()
        server.publish("forest-10", train("forest-10"), example, alias="champion")
        for form, rows in itertools.product(forms, sizes):
            data = folder / f"data.{form}"
            write_input(data, rows, form)
            peaks[form][rows] = round(run_jobs(server, "forest-10", data, form, rows, 1)[0]["memory_mb"])
            print(f"{form:<8} {rows:>11,} rows: {peaks[form][rows]:,.0f} MB")
            data.unlink()
    return peaks


def print_result(result: dict[str, Any]) -> None:
    speed, memory_mb = result["rows_per_s"], result["memory_mb"]
    print(f"{result['model']}, {result['format']}, load {result['load']}:")
    for way in ("article", "bare", "trivium", "again"):
        print(f"  {way:<8} {speed[way]:>10,} rows/s {memory_mb[way]:>7,} MB")
    of_bare = f"{result['of_the_bare_limit']}, again {result['again_of_the_bare_limit']} of the bare limit"
    print(f"  {result['times_the_article']} x the article, {of_bare}")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--models", nargs="+", default=["forest-10", "forest-full", "logistic"])
    parser.add_argument("--formats", nargs="+", default=["parquet", "csv"], choices=["parquet", "csv"])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="bench-batch-") as folder:
        if options.memory:
            results: Any = measure_memory(Path(folder), options.formats, (1_000_000, 5_000_000, 20_000_000))
        else:
            results = compare(Path(folder), options)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
