"""Migrations of the registry's schema (Alembic). `registry.db.migrate` runs them."""

import logging

HEAD = "0010"
"""The newest revision. A server compares it with the database's, without importing Alembic."""

# Callers of `migrate` log themselves. Set here, because Alembic logs its plugins while it is imported.
logging.getLogger("alembic").setLevel(logging.WARNING)
