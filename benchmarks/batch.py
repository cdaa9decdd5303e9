"""Scoring a large file: a Trivium job, what the article does, and the bare model in memory, in one run.

    python -m benchmarks.batch [--rows 10000000] [--models forest-10 forest-full logistic]
                               [--formats parquet csv] [--memory] [--json]

- `article`: pandas reads the whole file, the joblib model scores it on all cores, pandas writes labels and
  probabilities.
- `bare`: the fastest runtime there is for the model, on as many threads as there are cores, over a float64
  matrix that is in memory already; nothing is read or written. The limit of what a job could reach.
- `trivium`: from `POST /v1/jobs` to the output being there, the first job of a worker with a lane for each
  core; `again`: the same worker's second one.

Each runs in a process of its own; memory is the peak of that process (the worker's for Trivium). `--memory`
scores 1 to 20 million rows to see whether a worker's memory grows. Data are rows of the breast-cancer set
with noise, 30 columns.
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

from tests.harness.machine import describe_machine
from tests.harness.server import TRIVIUM, Server

CHUNK = 1_000_000
MEDIA = {"parquet": "application/vnd.apache.parquet", "csv": "text/csv"}
BARE_ROWS = 2_000_000
BARE_ROUNDS = 5
POLL_S = 0.1  # answering costs the server what the job could use: at 0.02 a tenth of two cores


def frame(rows: int, seed: int) -> Any:
    """`rows` rows like the breast-cancer data, which is 569 only."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer(as_frame=True).data
    random = np.random.default_rng(seed)
    drawn = data.sample(rows, replace=True, random_state=seed).reset_index(drop=True)
    return (drawn * random.normal(1, 0.1, drawn.shape)).round(5)


def write(path: Path, rows: int, form: str) -> None:
    """The input: Parquet in row groups of a million rows, or CSV. A tenth is made, and repeated."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    tables = [pa.Table.from_pandas(frame(CHUNK, seed), preserve_index=False) for seed in range(2)]
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
    noisy = frame(20_000, 9)
    labels = RandomForestClassifier(20, random_state=0).fit(data.data, data.target).predict(noisy)
    flipped = np.where(np.random.default_rng(0).random(len(labels)) < 0.1, 1 - labels, labels)
    models = {
        "forest-10": lambda: RandomForestClassifier(100, max_depth=10, random_state=0),
        "forest-full": lambda: RandomForestClassifier(100, random_state=0, min_samples_leaf=5),
        "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
    }
    return models[kind]().fit(noisy, flipped)


def article(model: Path, data: Path, form: str, out: Path) -> dict[str, float]:
    """What the article does, with all cores."""
    import joblib
    import pandas as pd

    start = time.monotonic()
    loaded = joblib.load(model)
    if "n_jobs" in loaded.get_params():
        loaded.set_params(n_jobs=-1)
    rows = pd.read_parquet(data) if form == "parquet" else pd.read_csv(data)
    found = loaded.predict_proba(rows)
    answer = pd.DataFrame({"label": loaded.classes_[found.argmax(axis=1)]})
    answer[[f"probability.{c}" for c in loaded.classes_]] = found
    answer.to_parquet(out) if form == "parquet" else answer.to_csv(out, index=False)
    return {"seconds": time.monotonic() - start, "rows": len(rows)}


def bare(home: Path, model: str) -> dict[str, float]:
    """The runtime that a job uses, on `BARE_ROWS` rows in memory, `BARE_ROUNDS` times: a block at a time on
    each core."""
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
    matrix = np.ascontiguousarray(frame(BARE_ROWS, 1).to_numpy(dtype=np.float64))
    blocks = [Rows(matrix=matrix[at : at + 65_536]) for at in range(0, len(matrix), 65_536)]
    runtime.run(blocks[0])
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        start = time.monotonic()
        for _ in pool.map(runtime.run, blocks * BARE_ROUNDS):
            pass
    return {"seconds": time.monotonic() - start, "rows": len(matrix) * BARE_ROUNDS}


def _no_child() -> Any:
    raise RuntimeError("this model has neither a table of nodes nor an ONNX graph")


def jobs(
    server: Server, model: str, data: Path, form: str, expected: int, count: int
) -> list[dict[str, float]]:
    """So many jobs, one after another, on a worker of their own, and the peak of that worker's memory."""
    environment = os.environ | {"TRIVIUM_HOME": str(server.home), "TRIVIUM_BATCH_ROOTS": str(data.parent)}
    log_file = data.parent / "worker.log"
    with log_file.open("wb") as log:
        worker = subprocess.Popen([TRIVIUM, "worker"], env=environment, stderr=log)
    try:
        while b"worker.started" not in log_file.read_bytes() and worker.poll() is None:
            time.sleep(0.05)
        found = []
        for _ in range(count):
            seconds = _job(server, model, data, form, expected)
            found.append({"seconds": seconds, "rows": expected, "memory_mb": _peak_mb(worker.pid)})
        return found
    finally:
        worker.terminate()
        worker.wait(60)
        log_file.unlink()


def _job(server: Server, model: str, data: Path, form: str, expected: int) -> float:
    """Seconds until it is done."""
    body = {
        "kind": "score",
        "model": model,
        "input": {"uri": str(data)},
        "output": {"media_type": MEDIA[form]},
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
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def in_a_child(*arguments: object) -> dict[str, float]:
    """One of the functions above in a process of its own; its peak of memory too."""
    order = [sys.executable, "-m", "benchmarks.batch", "--child", *map(str, arguments)]
    done = subprocess.run(order, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(what: str, arguments: Sequence[str]) -> None:
    if what == "article":
        model, data, form, out = arguments
        found = article(Path(model), Path(data), form, Path(out))
    else:
        found = bare(Path(arguments[0]), arguments[1])
    found["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found))


def compare(place: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each model on each format, the three ways."""
    import joblib

    results = []
    with Server(place / "home", place / "server.log", batch_roots=place) as server:
        server.start()
        for name in options.models:
            model = train(name)
            joblib.dump(model, place / f"{name}.joblib")
            server.publish(name, model, frame(200, 3).to_csv(index=False).encode(), alias="champion")
        for form in options.formats:
            data = place / f"data.{form}"
            write(data, options.rows, form)
            for name in options.models:
                first, again = jobs(server, name, data, form, options.rows, 2)
                ways = {
                    "article": in_a_child("article", place / f"{name}.joblib", data, form, place / "out"),
                    "bare": in_a_child("bare", server.home, name),
                    "trivium": first,
                    "again": again,
                }
                load = round(os.getloadavg()[1], 1)
                results.append({"model": name, "format": form, "load": load, **_ratios(ways)})
                say(results[-1])
            data.unlink()
    return results


def _ratios(ways: dict[str, dict[str, float]]) -> dict[str, Any]:
    speed = {way: found["rows"] / found["seconds"] for way, found in ways.items()}
    return {
        "rows_per_s": {way: round(s) for way, s in speed.items()},
        "memory_mb": {way: round(found["memory_mb"]) for way, found in ways.items()},
        "times_the_article": round(speed["trivium"] / speed["article"], 2),
        "of_the_bare_limit": round(speed["trivium"] / speed["bare"], 2),
        "again_of_the_bare_limit": round(speed["again"] / speed["bare"], 2),
    }


def memory(place: Path, forms: Sequence[str], sizes: Sequence[int]) -> dict[str, dict[int, float]]:
    """The peak of a worker's memory in MB by format and number of rows."""
    found: dict[str, dict[int, float]] = {form: {} for form in forms}
    with Server(place / "home", place / "server.log", batch_roots=place) as server:
        server.start()
        example = frame(200, 3).to_csv(index=False).encode()
        server.publish("forest-10", train("forest-10"), example, alias="champion")
        for form, rows in itertools.product(forms, sizes):
            data = place / f"data.{form}"
            write(data, rows, form)
            found[form][rows] = round(jobs(server, "forest-10", data, form, rows, 1)[0]["memory_mb"])
            print(f"{form:<8} {rows:>11,} rows: {found[form][rows]:,.0f} MB")
            data.unlink()
    return found


def say(result: dict[str, Any]) -> None:
    speed, held = result["rows_per_s"], result["memory_mb"]
    print(f"{result['model']}, {result['format']}, load {result['load']}:")
    for way in ("article", "bare", "trivium", "again"):
        print(f"  {way:<8} {speed[way]:>10,} rows/s {held[way]:>7,} MB")
    of_bare = f"{result['of_the_bare_limit']}, again {result['again_of_the_bare_limit']} of the bare limit"
    print(f"  {result['times_the_article']} x the article, {of_bare}")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--models", nargs="+", default=["forest-10", "forest-full", "logistic"])
    parser.add_argument("--formats", nargs="+", default=["parquet", "csv"], choices=["parquet", "csv"])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="bench-batch-") as place:
        if options.memory:
            found: Any = memory(Path(place), options.formats, (1_000_000, 5_000_000, 20_000_000))
        else:
            found = compare(Path(place), options)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
