"""A registry of 1,000 models with 20 versions each compared with one of 10 models, over HTTP.

    python -m benchmarks.large_registry [--models 1000] [--versions 20] [--json]

One forest is published and built; its row is copied for all other versions, so that every version can
predict. Measured are the start, lists, single records, predictions by alias and by number, `/docs`,
`/openapi.json`, a publish and a promotion, in milliseconds as the median of 15 calls.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.harness.machine import describe_machine
from tests.harness.models import cancer_forest
from tests.harness.server import Server

CALLS = 15
Figures = dict[str, float]


def fill(home: Path, models: int, versions: int) -> None:
    """Copy the published version to `models` models of `versions` versions; the newest ones are champions."""
    with contextlib.closing(sqlite3.connect(home / "registry.db")) as database, database:
        model = dict(_row(database, "models"))
        version = dict(_row(database, "versions"))
        alias, event = dict(_row(database, "aliases")), dict(_row(database, "alias_events"))
        for n in range(1, models):
            model_id = model["id"] + n
            _insert(
                database, "models", [model | {"id": model_id, "name": f"m{n:04}", "last_number": versions}]
            )
            first = version["id"] + n * versions
            rows = [
                version | {"id": first + v, "model_id": model_id, "number": v + 1} for v in range(versions)
            ]
            _insert(database, "versions", rows)
            copied_event = event | {"id": event["id"] + n, "model_id": model_id, "version": versions}
            _insert(database, "alias_events", [copied_event])
            newest = {
                "model_id": model_id,
                "version_id": first + versions - 1,
                "event_id": copied_event["id"],
            }
            _insert(database, "aliases", [alias | newest])


def _row(database: sqlite3.Connection, table: str) -> sqlite3.Row:
    database.row_factory = sqlite3.Row
    row: sqlite3.Row = database.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()
    return row


def _insert(database: sqlite3.Connection, table: str, rows: list[dict[str, object]]) -> None:
    names = ", ".join(rows[0])
    places = ", ".join(f":{name}" for name in rows[0])
    database.executemany(f"INSERT INTO {table} ({names}) VALUES ({places})", rows)


def measure(folder: Path, models: int, versions: int) -> Figures:
    model, example, rows = cancer_forest(20)
    home = folder / f"home-{models}"
    with Server(home, folder / "log") as server:
        server.start()
        server.publish("m0000", model, example, alias="champion")
        server.terminate()
        fill(home, models, versions)
        figures = {"start until ready": server.start() * 1000}
        assert server.process is not None
        _await_warm(server)
        figures["resident MB"] = psutil.Process(server.process.pid).memory_info().rss / 1e6
        last, body = f"m{models - 1:04}", json.dumps({"instances": rows[:1]}).encode()
        number = versions if models > 1 else 1
        reads: dict[str, tuple[str, str, bytes | None]] = {
            "list models, ten a page": ("GET", "/v1/models?page_size=10", None),
            "list models, by name": ("GET", f"/v1/models?q={last}", None),
            "list versions": ("GET", f"/v1/models/{last}/versions", None),
            "one model": ("GET", f"/v1/models/{last}", None),
            "one version": ("GET", f"/v1/models/{last}/versions/{number}", None),
            "predict by alias": ("POST", f"/v1/models/{last}/predict", body),
            "predict by number": ("POST", f"/v1/models/{last}/versions/{number}/predict", body),
            "/docs": ("GET", "/docs", None),
            "/openapi.json": ("GET", "/openapi.json", None),
            "one model's openapi.json": ("GET", f"/v1/models/{last}/openapi.json", None),
        }
        for name, (method, path, body) in reads.items():
            figures[name] = _median(lambda m=method, p=path, b=body: _ok(server, m, p, b))
        alias = f"/v1/models/{last}/aliases/champion"
        moves = iter(range(10**6))
        figures["promote"] = _median(
            lambda: server.call_json(
                "PUT", alias, {"version": 1 + next(moves) % number}
            )  # each one is a move
        )
        figures["openapi.json after a change, bytes"] = float(len(_ok(server, "GET", "/openapi.json", None)))
    return figures


def _await_warm(server: Server) -> None:
    """Wait until all champions are loaded, which happens after the start."""
    before, now = -1, server.log.read_text().count("model.loaded")
    while now != before:
        time.sleep(1.0)
        before, now = now, server.log.read_text().count("model.loaded")


def _median(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def _ok(server: Server, method: str, path: str, body: bytes | None) -> bytes:
    status, answer = server.call(method, path, body)
    if status != 200:
        raise RuntimeError(f"{method} {path}: {status} {answer[:300]!r}")
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--versions", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small = measure(Path(folder), 10, options.versions)
        large = measure(Path(folder), options.models, options.versions)
    if options.json:
        print(json.dumps({"small": small, "large": large}))
        return
    print(describe_machine())
    print(f"{'ms':<38}{'10 models':>12}{options.models:>12,}{'ratio':>8}")
    for name, figure in small.items():
        print(f"{name:<38}{figure:>12.1f}{large[name]:>12.1f}{large[name] / figure:>8.2f}")


if __name__ == "__main__":
    main()
