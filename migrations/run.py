"""Run Alembic in this process on an engine that is already there."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine


def config(engine: Engine) -> Config:
    made = Config()
    made.set_main_option("script_location", "migrations:")
    made.attributes["engine"] = engine
    return made


def run(engine: Engine, revision: str) -> None:
    """Migrate up or down to `revision` ("head", "base", or a number such as "0001")."""
    order = command.downgrade if revision == "base" else command.upgrade
    order(config(engine), revision)
