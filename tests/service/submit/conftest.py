"""Fixtures for tests on both databases, SQLite and PostgreSQL."""

from pathlib import Path

import pytest

from service.config import Settings
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


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with one batch root, `data`."""
    (tmp_path / "data").mkdir()
    return Settings(home=tmp_path / "home", batch_roots=str(tmp_path / "data"))
