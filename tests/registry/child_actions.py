"""Functions that tests of the registry run in other processes.

The module only imports the registry, because it is imported often.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from registry import aliases, db, keys, queue, versions
from registry.artifacts import Store
from registry.versions import NewVersion


def connect(url: str) -> Engine:
    """Connect like `db.connect`, with a longer timeout for SQLite's lock.

    SQLite's lock is not granted in order: on a busy disk, five seconds may be too short if several
    processes write without a pause.
    """

    def wait_long(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA busy_timeout = 60000")

    engine = db.connect(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", wait_long)
    return engine


@contextmanager
def connected(url: str) -> Iterator[db.Sessions]:
    engine = connect(url)
    try:
        yield db.sessions(engine)
    finally:
        engine.dispose()


def kill_self(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def publish(url: str, blobs: str, model: str, times: int) -> list[int]:
    store = Store(Path(blobs))
    numbers = []
    with connected(url) as sessions:
        for _ in range(times):
            blob = store.put([b"the same model"])
            with sessions.begin() as session:
                new = NewVersion(model=model, artifact=blob.sha256, format="onnx")
                numbers.append(versions.publish(session, store, new, by=str(os.getpid())).number)
    return numbers


def promote(url: str, model: str, numbers: list[int]) -> None:
    with connected(url) as sessions:
        for number in numbers:
            with sessions.begin() as session:
                aliases.promote(session, model, "champion", number, by=str(os.getpid()))


def finish_all_tasks(url: str, kind: str) -> list[int]:
    """Claim and finish tasks until none is left; return their ids."""
    finished = []
    with connected(url) as sessions:
        while True:
            with sessions.begin() as session:
                task = queue.claim(session, [kind], str(os.getpid()), lease_s=60)
            if task is None:
                return finished
            with sessions.begin() as session:
                queue.finish(session, task.id, task.fence, {"by": os.getpid()})
            finished.append(task.id)


def claim_and_die(url: str, kind: str, lease_s: float) -> None:
    with connected(url) as sessions:
        with sessions.begin() as session:
            queue.claim(session, [kind], "worker", lease_s=lease_s)
        kill_self()


def migrate(url: str, home: str) -> str | None:
    engine = db.connect(url)
    try:
        db.migrate(engine, Path(home))
        return db.schema_revision(engine)
    finally:
        engine.dispose()


def migrate_and_die(url: str, home: str, statements: int) -> None:
    """Migrate, and kill this process after `statements` CREATE and INSERT statements."""
    engine = db.connect(url)
    remaining = statements

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal remaining
        remaining -= statement.lstrip().startswith(("CREATE", "INSERT"))
        if remaining == 0:
            kill_self()

    event.listen(engine, "after_cursor_execute", count)
    db.migrate(engine, Path(home))


def imported_by_start(url: str, home: str) -> list[str]:
    """Return the slow modules that a start without a pending migration imports."""
    migrate(url, home)
    return [m for m in ("alembic", "sklearn", "pandas", "onnxruntime", "fastapi") if m in sys.modules]


def put(blobs: str, content: bytes) -> tuple[str, int, bool]:
    return tuple(Store(Path(blobs)).put([content[i : i + 1000] for i in range(0, len(content), 1000)]))


def write_and_die(blobs: str) -> None:
    writer = Store(Path(blobs)).writer()
    writer.write(b"x" * 100_000)
    kill_self()


def publish_and_die(url: str, blobs: str) -> None:
    """Publish, and kill this process at the commit."""
    store = Store(Path(blobs))
    engine = db.connect(url)
    event.listen(engine, "commit", kill_self)
    with db.sessions(engine).begin() as session:
        new = NewVersion(model="fraud", artifact=store.put([b"model"]).sha256, format="onnx")
        versions.publish(session, store, new, by="ann")


def make_admin_and_die(url: str, file: str) -> None:
    """Create the admin key, and kill this process between writing its file and the commit."""
    engine = db.connect(url)
    event.listen(engine, "commit", kill_self)
    with db.sessions(engine).begin() as session:
        keys.ensure_admin_key(session, Path(file))


def publish_until_killed(url: str, blobs: str, acknowledged: str) -> None:
    """Publish until killed; append each committed version to the file `acknowledged`."""
    store = Store(Path(blobs))
    with connected(url) as sessions, Path(acknowledged).open("a", buffering=1) as out:
        count = 0
        while True:
            count += 1
            blob = store.put([f"{os.getpid()} {count}".encode()])
            with sessions.begin() as session:
                new = NewVersion(model="fraud", artifact=blob.sha256, format="onnx")
                number = versions.publish(session, store, new, by="ann").number
            out.write(f"{number} {blob.sha256}\n")
