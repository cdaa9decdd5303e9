"""The registry's schema, step by step (Alembic). `registry.db.migrate` runs it."""

HEAD = "0002"
"""The newest revision: lets a server see that there is nothing to migrate without importing Alembic."""
