"""Alembic's entry point: migrate the engine that `migrations.run` passes, in one transaction.

A second process waits, and then finds the schema migrated: on SQLite the transaction starts as a writer, on
PostgreSQL it takes an advisory lock. If the process dies before the commit, the database is unchanged.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Engine, text

from registry.jobs import tables  # noqa: F401 - registers its tables in the metadata
from registry.tables import Base

engine: Engine = context.config.attributes["engine"]

with engine.connect() as connection:
    if engine.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(7340)"))
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        transactional_ddl=True,  # Alembic assumes that SQLite cannot, because of old releases of sqlite3
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
