"""The registry's schema, step by step (Alembic). `registry.db.migrate` runs it."""

import logging

HEAD = "0006"
"""The newest revision: lets a server see that there is nothing to migrate without importing Alembic."""

# Our callers say what Alembic does. Here, since it lists its plugins while it is imported.
logging.getLogger("alembic").setLevel(logging.WARNING)
