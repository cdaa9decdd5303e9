"""Database: pragmas, transactions, readers beside writers, locks, checkpoints."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, select, text, update
from sqlalchemy.exc import InternalError, OperationalError

from registry import db, revision, versions
from registry.artifacts import Store
from registry.build_messages import BuildResult
from registry.errors import TriviumError
from registry.tables import ModelRow, RevisionRow
from tests.registry.helpers import build, publish, threads


@pytest.fixture
def sqlite(sqlite_template: Path, tmp_path: Path) -> Iterator[Engine]:
    (tmp_path / "registry.db").write_bytes(sqlite_template.read_bytes())
    engine = db.connect(f"sqlite:///{tmp_path}/registry.db")
    yield engine
    engine.dispose()


@contextmanager
def _statements(engine: Engine) -> Iterator[list[str]]:
    """Yield the list of statements that SQLite executes, including BEGIN and COMMIT."""
    statements: list[str] = []

    def trace(connection: object, *_: object) -> None:
        connection.set_trace_callback(statements.append)  # type: ignore[attr-defined]

    event.listen(engine, "checkout", trace)
    yield statements
    event.remove(engine, "checkout", trace)


def test_sqlite_connections_have_the_expected_pragmas(sqlite: Engine) -> None:
    expected = {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "busy_timeout": 5000,
        "foreign_keys": 1,
        "mmap_size": 0,
        "wal_autocheckpoint": 0,
    }
    with sqlite.connect() as first, sqlite.connect().execution_options(readonly=True) as second:
        for connection in (first, second):
            values = {p: connection.exec_driver_sql(f"PRAGMA {p}").scalar() for p in expected}
            assert values == expected


def test_only_write_sessions_begin_immediate_transactions(sqlite: Engine) -> None:
    with _statements(sqlite) as statements, db.reading(db.sessions(sqlite)) as session:
        revision.current(session)
    assert statements[0] == "BEGIN"
    assert "BEGIN IMMEDIATE" not in statements
    with _statements(sqlite) as statements, db.sessions(sqlite).begin() as session:
        revision.current(session)
    assert statements[0] == "BEGIN IMMEDIATE"


def test_a_reader_does_not_wait_for_a_writer_and_sees_committed_rows(sessions: db.Sessions) -> None:
    with sessions.begin() as writer:
        revision.record_change(writer, "model", "fraud")
        with db.reading(sessions) as reader:
            assert revision.current(reader) == 0
    with db.reading(sessions) as reader:
        assert revision.current(reader) == 1


def test_is_current_does_not_wait_for_a_writer(engine: Engine, sessions: db.Sessions) -> None:
    with sessions.begin() as writer:
        revision.record_change(writer, "model", "fraud")
        statements: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda _c, _cursor, sql, *_: statements.append(sql))
        assert db.is_current(engine)
    assert "BEGIN IMMEDIATE" not in statements


def test_a_reader_sees_one_snapshot_while_others_write(sessions: db.Sessions) -> None:
    with db.reading(sessions) as reader:
        assert revision.current(reader) == 0
        with sessions.begin() as writer:
            revision.record_change(writer, "model", "fraud")
            writer.add(ModelRow(name="fraud", created_by="ann"))
        assert revision.current(reader) == 0
        assert reader.scalars(select(ModelRow)).all() == []


def test_a_pooled_connection_of_a_reader_can_be_used_by_a_writer(
    engine: Engine, sessions: db.Sessions
) -> None:
    for expected in range(1, 4):
        with db.reading(sessions) as reader:
            revision.current(reader)
        with sessions.begin() as writer:
            assert revision.record_change(writer, "model", "fraud") == expected
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_concurrent_writers_wait_for_each_other(sessions: db.Sessions) -> None:
    """On SQLite, a transaction that starts as a reader and writes later would fail at once."""

    def increment() -> None:
        for _ in range(10):
            with sessions.begin() as session:
                value = session.scalar(select(RevisionRow.value).with_for_update())
                session.execute(update(RevisionRow).values(value=(value or 0) + 1))

    assert threads(*[increment] * 4) == [None] * 4
    with sessions() as session:
        assert revision.current(session) == 40


def test_foreign_keys_are_checked(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(Exception, match=r"(?i)foreign key"):
        connection.execute(text("INSERT INTO version_tags (version_id, key, value) VALUES (7, 'a', 'b')"))


def test_nan_and_infinity_are_stored_as_null(sessions: db.Sessions, store: Store) -> None:
    number = publish(sessions, store)
    report = {"largest_difference": float("inf"), "each": [float("nan"), 0.5], "größte": "1e-7 ≤ ε"}
    build(sessions, BuildResult(state="rejected", report=report, metrics={"r2": float("nan")}))
    with db.reading(sessions) as session:
        version = versions.get(session, "fraud", number)
        assert version.report == {"largest_difference": None, "each": [None, 0.5], "größte": "1e-7 ≤ ε"}
        assert version.metrics == {"r2": None}


def test_only_checkpoint_moves_the_wal_into_the_database_file(sqlite: Engine, tmp_path: Path) -> None:
    file, sessions = tmp_path / "registry.db", db.sessions(sqlite)
    before = file.read_bytes()
    with sessions.begin() as session:
        session.add_all(ModelRow(name=f"model-{i}", created_by="ann" * 100) for i in range(5000))
    assert file.read_bytes() == before
    db.checkpoint(sqlite, tmp_path)
    assert len(file.read_bytes()) > len(before) + 1_000_000


def test_checkpoint_returns_if_another_process_checkpoints(sqlite: Engine, tmp_path: Path) -> None:
    before = (tmp_path / "registry.db").read_bytes()
    with db.sessions(sqlite).begin() as session:
        revision.record_change(session, "model", "fraud")
    with (tmp_path / "checkpoint.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        db.checkpoint(sqlite, tmp_path)
    assert (tmp_path / "registry.db").read_bytes() == before


def test_a_file_lock_has_one_holder_at_a_time(tmp_path: Path) -> None:
    inside, counts = 0, []
    guard = threading.Lock()

    def enter() -> None:
        nonlocal inside
        for _ in range(50):
            with db.locked(tmp_path / "a.lock"):
                with guard:
                    inside += 1
                    counts.append(inside)
                with guard:
                    inside -= 1

    assert threads(*[enter] * 4) == [None] * 4
    assert max(counts) == 1


def test_a_writer_that_waits_too_long_gets_an_operational_error(sqlite: Engine) -> None:
    sessions = db.sessions(sqlite)
    with sessions.begin() as first:
        revision.record_change(first, "model", "fraud")
        with sqlite.connect().execution_options(readonly=True) as second:
            second.exec_driver_sql("PRAGMA busy_timeout = 50")
            with pytest.raises(OperationalError, match="locked"):
                second.execute(update(RevisionRow).values(value=9))


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_a_session_idle_in_a_transaction_loses_its_locks(url: str, sessions: db.Sessions) -> None:
    with sessions.begin() as session:
        session.add(ModelRow(name="fraud", created_by="ann"))
    stopped = db.connect(url, max_idle_s=0.2)
    locking = select(ModelRow).with_for_update()
    with db.sessions(stopped)() as late:
        late.execute(locking)
        with sessions.begin() as session:
            session.execute(locking)  # after the idle session was ended
        with pytest.raises(InternalError, match="idle-in-transaction timeout"):
            late.execute(locking)
    with db.sessions(stopped).begin() as session:  # a new connection
        session.execute(locking)
    stopped.dispose()


def test_the_database_of_a_later_release_is_rejected(tmp_path: Path) -> None:
    engine = db.connect(f"sqlite:///{tmp_path / 'registry.db'}")
    db.migrate(engine, tmp_path)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for call in (lambda: db.require_current(engine), lambda: db.migrate(engine, tmp_path)):
        with pytest.raises(TriviumError, match="at revision 9999"):
            call()
    engine.dispose()
