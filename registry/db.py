"""The database: engine, SQLite pragmas, sessions, migrations, and the revision that readers watch.

SQLite by default, PostgreSQL by URL; the use cases above know neither.
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
"""Before this version SQLite can corrupt a WAL database when two connections write or checkpoint at the
instant the log is reset. Hence no connection of ours checkpoints by itself; `checkpoint` does, one
process at a time."""


def connect(url: str, most_idle_s: float | None = None) -> Engine:
    """An engine for `url`. SQLite gets WAL, full durability and immediate write transactions.

    PostgreSQL ends a session that does nothing for `most_idle_s` inside of a transaction: a process that was
    stopped there would keep its locks. (SQLite cannot: nobody writes until that process goes on.)
    """
    # msgspec writes NaN and infinity, which PostgreSQL's JSON has not, as null
    shared: dict[str, Any] = {"json_serializer": _json, "json_deserializer": msgspec.json.decode}
    shared |= {"pool_size": 8, "max_overflow": 8}
    if not url.startswith("sqlite"):
        if most_idle_s is not None:
            idle = f"-c idle_in_transaction_session_timeout={most_idle_s:g}s"
            shared["connect_args"] = {"options": idle}
        return create_engine(url, pool_pre_ping=True, **shared)
    home = Path(url.partition(":///")[2]).parent
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(url, connect_args={"timeout": 5.0}, **shared)
    event.listen(engine, "connect", lambda made, _: _prepare_sqlite(made, home / "connect.lock"))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def sessions(engine: Engine) -> Sessions:
    return sessionmaker(engine, expire_on_commit=False)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _prepare_sqlite(connection: Any, lock: Path) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves, see _begin_sqlite
    connection.create_function("lower", 1, _lower, deterministic=True)
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 5000")
    with locked(lock):  # of several that switch a new database to WAL at once, SQLite fails all but one
        cursor.execute("PRAGMA journal_mode = WAL")
    for pragma in (
        "synchronous = FULL",  # NORMAL may lose acknowledged commits on power loss
        "foreign_keys = ON",
        "mmap_size = 0",
        "wal_autocheckpoint = 0",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _lower(value: str | None) -> str | None:
    """SQLite's own knows ASCII only: a search would find other rows than PostgreSQL does."""
    return None if value is None else value.lower()


def _begin_sqlite(connection: Any) -> None:
    # A deferred transaction that turns into a writer half way fails at once, busy_timeout or not.
    readonly = connection.get_execution_options().get("readonly", False)
    connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")


@contextmanager
def reading(sessions: Sessions) -> Iterator[Session]:
    """A session that only reads, and sees the registry as it was at its first look; it never waits for a
    writer."""
    with sessions() as session:
        session.connection(execution_options=_read_options(session.get_bind().dialect.name))
        yield session


def _read_options(dialect: str) -> dict[str, Any]:
    if dialect == "sqlite":  # which knows nothing but snapshots
        return {"readonly": True}
    return {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file lock `path`, waiting for it. Released by the kernel when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def checkpoint(engine: Engine, home: Path) -> None:
    """Move SQLite's log into the database file, unless another process is doing it right now.

    Under the write lock, so that no writer resets the log meanwhile: see `WAL_RESET_FIXED`.
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
    """The migration the database stands at, or None for an empty one."""
    with engine.connect().execution_options(**_read_options(engine.dialect.name)) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def is_current(engine: Engine) -> bool:
    return schema_revision(engine) == HEAD


def migrate(engine: Engine, home: Path, revision: str = "head") -> None:
    """Bring the schema to `revision`, one process at a time.

    Alembic is imported only when there is something to do: it costs half a second at start.
    """
    if revision == "head" and is_current(engine):
        return
    _require_known(schema_revision(engine))
    with locked(home / "migrate.lock"):
        if revision == "head" and is_current(engine):
            return
        from migrations.run import run

        run(engine, revision)


def require_current(engine: Engine) -> None:
    """Raises `TriviumError` with the way out when the schema is not the one this code was written for."""
    found = schema_revision(engine)
    _require_known(found)
    if found != HEAD:
        raise TriviumError(
            f"the database is at revision {found}, this version needs {HEAD}; run `trivium migrate`"
        )


def _require_known(revision: str | None) -> None:
    """Revisions are counted: what lies beyond ours was made by a later release."""
    if revision is not None and revision > HEAD:
        raise TriviumError(
            f"the database is at revision {revision}, this version knows those up to {HEAD}; upgrade Trivium"
        )
