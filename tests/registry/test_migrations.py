"""Migrations: they match the tables, go up and down, and survive concurrent starts and kills."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, select, text

from migrations import HEAD
from migrations.run import config
from registry import db, revision
from registry.errors import TriviumError
from registry.tables import Base, RevisionRow
from tests.registry import child_actions
from tests.registry.conftest import EmptyDatabase
from tests.registry.helpers import processes, run_until_killed


def _differences(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))


def _tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


def test_migrations_create_exactly_the_tables_of_the_code(engine: Engine) -> None:
    assert _differences(engine) == []
    assert db.is_current(engine)
    assert _tables(engine) == set(Base.metadata.tables) | {"alembic_version"}


def test_migrations_go_down_to_an_empty_database_and_up_again(engine: Engine, tmp_path: Path) -> None:
    db.migrate(engine, tmp_path, "base")
    assert _tables(engine) == {"alembic_version"}
    assert db.schema_revision(engine) is None
    db.migrate(engine, tmp_path)
    assert _differences(engine) == []
    with db.sessions(engine)() as session:
        assert session.scalars(select(RevisionRow.value)).all() == [0]


def test_head_is_the_newest_migration(engine: Engine) -> None:
    assert ScriptDirectory.from_config(config(engine)).get_current_head() == HEAD


def test_a_start_without_a_pending_migration_does_not_import_alembic(url: str, tmp_path: Path) -> None:
    assert processes(child_actions.imported_by_start, [(url, str(tmp_path))]) == [[]]


def test_an_empty_database_is_rejected_with_the_command_to_run(empty: EmptyDatabase) -> None:
    engine = db.connect(empty.url)
    with pytest.raises(TriviumError, match="run `trivium migrate`"):
        db.require_current(engine)
    engine.dispose()


def test_four_processes_can_migrate_at_once(empty: EmptyDatabase) -> None:
    assert processes(child_actions.migrate, [(empty.url, str(empty.home))] * 4) == [HEAD] * 4
    _check_schema(empty)


def test_hosts_without_a_shared_disk_can_migrate_one_database_at_once(
    empty: EmptyDatabase, tmp_path: Path
) -> None:
    homes = [tmp_path / f"host{i}" for i in range(4)]
    assert processes(child_actions.migrate, [(empty.url, str(home)) for home in homes]) == [HEAD] * 4
    _check_schema(empty)


@pytest.mark.parametrize("statements", [1, 9, 20, 22])
def test_a_killed_migration_is_rolled_back_and_the_next_start_migrates(
    empty: EmptyDatabase, statements: int
) -> None:
    run_until_killed(child_actions.migrate_and_die, empty.url, str(empty.home), statements)
    engine = db.connect(empty.url)
    assert _tables(engine) == set()
    db.migrate(engine, empty.home)
    engine.dispose()
    _check_schema(empty)


def test_migrating_logs_only_warnings(empty: EmptyDatabase) -> None:
    """Runs in another process, because Alembic logs when it is imported."""
    script = """
import logging, sys
from pathlib import Path
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
from registry import db
db.migrate(db.connect(sys.argv[1]), Path(sys.argv[2]))
"""
    argv = [sys.executable, "-c", script, empty.url, str(empty.home)]
    assert subprocess.run(argv, check=True, capture_output=True, text=True).stdout == ""
    _check_schema(empty)


def test_sqlite_never_reuses_an_id(dialect: str, engine: Engine) -> None:
    """Pools and tasks refer to versions by id: a new version must not get the id of a deleted one."""
    if dialect == "postgresql":
        return  # its sequences only increase
    with engine.connect() as connection:
        for table in ("models", "versions", "alias_events", "tasks"):
            sql = connection.execute(text(f"SELECT sql FROM sqlite_master WHERE name = '{table}'")).scalar()
            assert "AUTOINCREMENT" in str(sql), table


def _check_schema(empty: EmptyDatabase) -> None:
    engine = db.connect(empty.url)
    assert _differences(engine) == []
    with db.sessions(engine)() as session:
        assert revision.current(session) == 0
    engine.dispose()
