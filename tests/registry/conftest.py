"""Fixtures: a registry on SQLite and on PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import Engine

from registry import db
from registry.artifacts import Store
from tests.registry import child_actions
from tests.registry.postgres import Postgres, ReusedDatabases, migrate


class EmptyDatabase(NamedTuple):
    """An empty database without migrations."""

    url: str
    home: Path


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("template")
    migrate(f"sqlite:///{home}/registry.db", home)
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
    databases: ReusedDatabases = request.getfixturevalue("reused_databases")
    name = databases.take()
    yield postgres.url(name)
    databases.give_back(name)


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
