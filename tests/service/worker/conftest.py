"""Fixtures for tests on both databases, SQLite and PostgreSQL."""

from tests.registry.conftest import (
    dialect,
    engine,
    sessions,
    sqlite_template,
    store,
    url,
)

__all__ = [
    "dialect",
    "engine",
    "sessions",
    "sqlite_template",
    "store",
    "url",
]
