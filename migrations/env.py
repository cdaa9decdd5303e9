"""Alembic's entry: migrate the engine that `migrations.run` hands over, in one transaction.

Whoever comes second waits, then sees that nothing is left to do: SQLite's transactions start as writers,
PostgreSQL is asked for a lock. A transaction that its process did not live to commit leaves nothing.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Engine, text

from registry.jobs import tables  # noqa: F401 - its tables are part of the metadata
from registry.tables import Base

engine: Engine = context.config.attributes["engine"]

with engine.connect() as connection:
    if engine.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(7340)"))
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        transactional_ddl=True,  # SQLite can: Alembic assumes it cannot, because of what sqlite3 once did
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
