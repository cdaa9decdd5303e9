"""Alembic's entry: migrate the engine that `migrations.run` hands over, in one transaction."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Engine

from registry.tables import Base

engine: Engine = context.config.attributes["engine"]

with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
