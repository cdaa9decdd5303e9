"""The registry's databases, SQLite and PostgreSQL, for what a worker does with them."""

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
