"""Fixtures for tests on both databases, SQLite and PostgreSQL."""

from tests.registry.conftest import (
    dialect,
    engine,
    postgres,
    postgres_template,
    sessions,
    sqlite_template,
    store,
    url,
)

__all__ = [
    "dialect",
    "engine",
    "postgres",
    "postgres_template",
    "sessions",
    "sqlite_template",
    "store",
    "url",
]
