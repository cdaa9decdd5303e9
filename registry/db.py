"""Database access: engine, SQLite pragmas, sessions, file locks and migrations.

SQLite by default, PostgreSQL by URL. The use-case modules of the registry do not depend on either.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.orm import Session, sessionmaker

from migrations import HEAD
from registry.errors import TriviumError

Sessions = sessionmaker[Session]

WAL_RESET_FIXED = (3, 51, 3)
"""Before this version, SQLite can corrupt a WAL database if two connections write or checkpoint while the log
is reset. Therefore connections do not checkpoint by themselves; `checkpoint` does, one process at a time."""


def connect(url: str, max_idle_s: float | None = None) -> Engine:
    """Create an engine for `url`. SQLite gets WAL, full durability and immediate write transactions.

    PostgreSQL ends a session that is idle inside a transaction for `max_idle_s`, because a stopped process
    would keep its locks. SQLite lacks such a timeout: other writers wait until the process continues.
    """
    # msgspec encodes NaN and infinity, which PostgreSQL's JSON lacks, as null
    shared: dict[str, Any] = {"json_serializer": _json, "json_deserializer": msgspec.json.decode}
    shared |= {"pool_size": 8, "max_overflow": 8}
    if not url.startswith("sqlite"):
        if max_idle_s is not None:
            option = f"-c idle_in_transaction_session_timeout={max_idle_s:g}s"
            shared["connect_args"] = {"options": option}
        return create_engine(url, pool_pre_ping=True, **shared)
    home = Path(url.partition(":///")[2]).parent
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(url, connect_args={"timeout": 5.0}, **shared)
    event.listen(engine, "connect", lambda connection, _: _prepare_sqlite(connection, home / "connect.lock"))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def sessions(engine: Engine) -> Sessions:
    return sessionmaker(engine, expire_on_commit=False)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _prepare_sqlite(connection: Any, lock: Path) -> None:
    connection.isolation_level = None  # `_begin_sqlite` emits BEGIN
    connection.create_function("lower", 1, _lower, deterministic=True)
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 5000")
    with locked(lock):  # if several processes switch a new database to WAL at once, all but one fail
        cursor.execute("PRAGMA journal_mode = WAL")
    for pragma in (
        "synchronous = FULL",  # NORMAL may lose acknowledged commits in a power failure
        "foreign_keys = ON",
        "mmap_size = 0",
        "wal_autocheckpoint = 0",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _lower(value: str | None) -> str | None:
    """Lower-case all letters, as PostgreSQL does. SQLite's own function covers ASCII only."""
    return None if value is None else value.lower()


def _begin_sqlite(connection: Any) -> None:
    # A deferred transaction that becomes a writer later fails at once, regardless of busy_timeout.
    readonly = connection.get_execution_options().get("readonly", False)
    connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")


@contextmanager
def reading(sessions: Sessions) -> Iterator[Session]:
    """Yield a read-only session with a snapshot as of its first query. It never waits for a writer."""
    with sessions() as session:
        session.connection(execution_options=_read_options(session.get_bind().dialect.name))
        yield session


def _read_options(dialect: str) -> dict[str, Any]:
    if dialect == "sqlite":  # its read transactions are always snapshots
        return {"readonly": True}
    return {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file lock `path`. Waits for it; the kernel releases it if the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def checkpoint(engine: Engine, home: Path) -> None:
    """Move SQLite's log into the database file, unless another process does it at the same time.

    Holds the write lock, so that no writer resets the log meanwhile: see `WAL_RESET_FIXED`.
    """
    if engine.dialect.name != "sqlite":
        return
    with (home / "checkpoint.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        raw = engine.raw_connection()
        try:
            with engine.begin():
                raw.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)")
        finally:
            raw.close()


def schema_revision(engine: Engine) -> str | None:
    """Return the revision of the schema, or None for an empty database."""
    with engine.connect().execution_options(**_read_options(engine.dialect.name)) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def is_current(engine: Engine) -> bool:
    return schema_revision(engine) == HEAD


def migrate(engine: Engine, home: Path, revision: str = "head") -> None:
    """Migrate the schema to `revision`, one process at a time.

    Imports Alembic only if there is a migration to run: the import takes half a second at start.
    """
    if revision == "head" and is_current(engine):
        return
    _require_supported(schema_revision(engine))
    with locked(home / "migrate.lock"):
        if revision == "head" and is_current(engine):
            return
        from migrations.run import run

        run(engine, revision)


def require_current(engine: Engine) -> None:
    """Raises `TriviumError` with the command to run if the schema does not match this release."""
    revision = schema_revision(engine)
    _require_supported(revision)
    if revision != HEAD:
        raise TriviumError(
            f"the database is at revision {revision}, but this version needs {HEAD}; run `trivium migrate`"
        )


def _require_supported(revision: str | None) -> None:
    """Raises `TriviumError` for a schema of a later release. Revisions are increasing numbers."""
    if revision is not None and revision > HEAD:
        raise TriviumError(
            f"the database is at revision {revision}, but this version supports revisions up to {HEAD};"
            " upgrade Trivium"
        )
