"""The registry's functions on 1,000 models x 20 versions compared with 10 x 20, in one run.

    python -m benchmarks.registry [--json] [--url postgresql+psycopg://...]

Uses SQLite in a temporary directory, or with `--url` two empty databases: `{}` in the URL stands for `small`
and `large`. Ratios of large to small can be compared between machines, milliseconds cannot. Only `snapshot
load`, `catalogue` and `collect garbage` may grow with the registry.
"""

from __future__ import annotations

import json
import sys
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, insert, update
from sqlalchemy.orm import Session

from registry import aliases, catalog, db, garbage, models, queue, revision, versions
from registry.artifacts import Store
from registry.signature import Input, Output, Signature
from registry.tables import AliasEventRow, AliasRow, ModelRow, RevisionRow, TagRow, TaskRow, VersionRow, now
from service.runtime.snapshot import Snapshot

VERSIONS = 20
SIZES = {"small": 10, "large": 1000}
SIGNATURE = Signature(
    "classification",
    tuple(Input(f"mean radius {i}", "float64", minimum=0.0, maximum=30.0) for i in range(30)),
    (Output("label", "int64", (-1,), (0, 1)), Output("probabilities", "float64", (-1, 2), (0, 1))),
).to_json()
REPORT = {"compared": {"example": 50, "random": 200, "thresholds": 500}, "largest_difference": 2e-7}


def fill(sessions: db.Sessions, count: int) -> None:
    """Insert `count` models, each promoted 20 times, with the finished tasks of all builds."""
    ids = range(1, count * VERSIONS + 1)
    moment = now()

    def owner(version_id: int) -> int:
        return (version_id - 1) // VERSIONS + 1

    def number(version_id: int) -> int:
        return (version_id - 1) % VERSIONS + 1

    common: dict[str, Any] = {"created_at": moment, "created_by": "bench"}
    version = common | {
        "state": "ready",
        "format": "onnx",
        "example": None,
        "target": None,
        "runtime": "onnx",
    }
    version |= {"publisher_signature": None, "publisher_alias": None, "runtime_reason": "same", "lineage": {}}
    version |= {"metrics": {"auc": 0.9}, "signature": SIGNATURE, "report": REPORT, "built_at": moment}
    task: dict[str, Any] = {"kind": "build", "state": "done", "not_before": moment, "max_attempts": 3}
    event = {"alias": "champion", "action": "promote", "at": moment, "by": "bench", "reason": None}
    with sessions.begin() as session:
        session.execute(
            insert(ModelRow),
            [
                common | {"id": m, "name": f"model-{m:05}", "last_number": VERSIONS}
                for m in range(1, count + 1)
            ],
        )
        rows = [
            version
            | {"id": i, "model_id": owner(i), "number": number(i), "description": f"Run {i} in March"}
            | {"artifact": f"{i:064x}", "servable": f"{i + 10**9:064x}"}
            for i in ids
        ]
        session.execute(insert(VersionRow), rows)
        tags = [{"version_id": i, "key": "team", "value": f"team-{owner(i) % 10}"} for i in ids]
        tags += [{"version_id": i, "key": "stage", "value": "live"} for i in ids]
        session.execute(insert(TagRow), tags)
        moves = [
            event
            | {"id": i, "model_id": owner(i), "version": number(i)}
            | {"previous_id": i - 1 if number(i) > 1 else None}
            for i in ids
        ]
        session.execute(insert(AliasEventRow), moves)
        points = [
            {"model_id": m, "name": "champion", "version_id": m * VERSIONS, "event_id": m * VERSIONS}
            for m in range(1, count + 1)
        ]
        session.execute(insert(AliasRow), points)
        session.execute(insert(TaskRow), [task | {"subject": str(i)} for i in ids])
        session.execute(update(RevisionRow).values(value=len(ids)))
        if session.get_bind().dialect.name == "postgresql":  # ids were inserted, so the sequences must be set
            for table in ("models", "versions", "alias_events"):
                session.connection().exec_driver_sql(
                    f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))"
                )
            session.connection().exec_driver_sql("ANALYZE")  # autovacuum would do it within a minute


Calls = dict[str, Callable[[], object]]


def measure(url: str, home: Path, count: int) -> dict[str, float]:
    """Return milliseconds by operation, each the fastest of several repeats."""
    engine = db.connect(url)
    db.migrate(engine, home)
    sessions, store = db.sessions(engine), Store(home / "blobs")
    fill(sessions, count)
    name = f"model-{count // 2:05}"
    snapshot = Snapshot(engine)
    snapshot.refresh()
    calls = reads(sessions, name) | writes(sessions, store, name)
    calls |= snapshots(engine, sessions, snapshot, name) | full_scans(sessions, store)
    times = {name: milliseconds(call) for name, call in calls.items()}
    times["resolve (us)"] = milliseconds(lambda: snapshot.resolve(name), 10_000) * 1000
    engine.dispose()
    return times


def reads(sessions: db.Sessions, name: str) -> Calls:
    def read(function: Callable[..., object], *args: object, **kwargs: object) -> Callable[[], None]:
        def call() -> None:
            with db.reading(sessions) as session:
                function(session, *args, **kwargs)

        return call

    def search(q: str | None = None, **tags: str) -> Callable[[], None]:
        return read(models.search, q=q, tags=list(tags.items()), page_size=10)

    live = [("stage", "live")]
    return {
        "list 10 models": search(),
        "list 10 versions": read(versions.search, name, page_size=10),
        "search a name": search(name[-4:]),
        "search a rare tag": search(team="team-3"),
        "search a common tag": search(stage="live"),
        "search an unknown tag": search(team="none"),
        "search versions by tag": read(versions.search, name, tags=live, page_size=10),
        "search descriptions": read(versions.search, name, q="MARCH", page_size=10),
        "one version": read(versions.get, name, 7),
        "history": read(aliases.history, name, "champion"),
        "catalogue of one": read(catalog.entries, name),
    }


def writes(sessions: db.Sessions, store: Store, name: str) -> Calls:
    """Writes that are rolled back, because the time of a commit is that of the disk."""

    def undo(function: Callable[..., object], *args: object, **kwargs: object) -> Callable[[], None]:
        def call() -> None:
            with sessions() as session:
                function(session, *args, **kwargs)
                session.rollback()

        return call

    def delete_model(session: Session) -> None:
        aliases.remove(session, name, "champion", by="bench")
        models.remove(session, name)

    new = versions.NewVersion(model=name, artifact=store.put([b"model"]).sha256, format="onnx")
    return {
        "publish": undo(versions.publish, store, new, by="bench"),
        "promote": undo(aliases.promote, name, "champion", 3, by="bench"),
        "rollback": undo(aliases.rollback, name, "champion", by="bench"),
        "claim, empty queue": undo(queue.claim, ["build"], "bench"),
        "lost tasks, empty queue": undo(queue.fail_lost, ["build"]),
        "delete a version": undo(versions.remove, name, 3),
        "delete a model": undo(delete_model),
    }


def snapshots(engine: Engine, sessions: db.Sessions, snapshot: Snapshot, name: str) -> Calls:
    def reload() -> None:
        with sessions.begin() as session:
            revision.record_change(session, "model", name)
        snapshot.refresh()

    return {"reload one model": reload, "snapshot load": lambda: Snapshot(engine).refresh()}


def full_scans(sessions: db.Sessions, store: Store) -> Calls:
    def read_catalogue() -> None:
        with db.reading(sessions) as session:
            catalog.entries(session)

    def collect() -> None:
        with sessions.begin() as session:
            garbage.collect(session, store, dry_run=True)

    return {"catalogue of all": read_catalogue, "collect garbage": collect}


def milliseconds(call: Callable[[], object], number: int = 1) -> float:
    """Return the fastest of seven repeats: slower ones measured other load on the machine."""
    return min(timeit.repeat(call, number=number, repeat=7)) / number * 1000


def main() -> None:
    pattern = sys.argv[sys.argv.index("--url") + 1] if "--url" in sys.argv else ""
    results = {}
    for name, count in SIZES.items():
        with tempfile.TemporaryDirectory() as directory:
            home = Path(directory)
            url = pattern.replace("{}", name) or f"sqlite:///{home}/registry.db"
            results[name] = measure(url, home, count)
    if "--json" in sys.argv:
        print(json.dumps(results))
        return
    print(f"{'milliseconds':26}{SIZES['small']:>9} models{SIZES['large']:>9} models    ratio")
    for name, small in results["small"].items():
        large = results["large"][name]
        print(f"{name:26}{small:16.2f}{large:16.2f}{large / small:9.1f}")


if __name__ == "__main__":
    main()
