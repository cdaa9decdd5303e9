"""Run Alembic in this process, on an existing engine."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine


def config(engine: Engine) -> Config:
    alembic_config = Config()
    alembic_config.set_main_option("script_location", "migrations:")
    alembic_config.attributes["engine"] = engine
    return alembic_config


def run(engine: Engine, revision: str) -> None:
    """Upgrade to `revision` ("head" or a number such as "0001"), or downgrade to "base"."""
    migrate = command.downgrade if revision == "base" else command.upgrade
    migrate(config(engine), revision)
