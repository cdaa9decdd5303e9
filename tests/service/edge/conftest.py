"""An application with exports of both versions of `flag`; version 1 is champion."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from registry import aliases, catalog, db
from service.config import Settings
from tests.service.api import Api, running_app
from tests.service.edge.export_helpers import File, add_export, some_file
from tests.service.edge.tuf_registry import Registry


class Flag(NamedTuple):
    api: Api
    files: dict[int, File]  # by version

    async def promote(self, version: int, percent: int | None = None, alias: str = "champion") -> None:
        body = {"version": version} | ({} if percent is None else {"edge_percent": percent})
        answer = await self.api.client.put(f"/v1/models/flag/aliases/{alias}", json=body)
        assert answer.status_code == 200, answer.text

    async def rollback(self) -> None:
        answer = await self.api.client.post("/v1/models/flag/aliases/champion/rollback")
        assert answer.status_code == 200, answer.text

    async def latest(self, device: str | None = None, **headers: str) -> int:
        """Download the latest file, check it, and return its version."""
        if device is not None:
            headers["X-Device-Id"] = device
        answer = await self.api.client.get("/v1/edge/flag/latest.tflite", headers=headers)
        assert answer.status_code == 200, answer.text
        version = int(answer.headers["x-model-version"])
        assert answer.content == self.files[version].content
        assert answer.headers["x-model-sha256"] == self.files[version].sha256
        return version


@pytest.fixture(scope="session")
def flag_home(published_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `published_home` in which only `flag` has a champion: no other model is loaded."""
    home = Path(shutil.copytree(published_home, tmp_path_factory.mktemp("flag") / "home"))
    engine = db.connect(Settings(home=home).url)
    with db.sessions(engine).begin() as session:
        for entry in catalog.entries(session):
            if entry.name != "flag":
                aliases.remove(session, entry.name, "champion", by="test")
    engine.dispose()
    return home


@asynccontextmanager
async def running_flag(flag_home: Path, home: Path) -> AsyncIterator[Flag]:
    """The application on `home`, a new copy of `flag_home`."""
    shutil.copytree(flag_home, home)
    async with running_app(Settings(home=home)) as api:
        files = {v: add_export(api.services, some_file(v), version=v) for v in (1, 2)}
        yield Flag(api, files)


@pytest.fixture
async def flag(flag_home: Path, tmp_path: Path) -> AsyncIterator[Flag]:
    async with running_flag(flag_home, tmp_path / "home") as flag:
        yield flag


@pytest.fixture(scope="module")
async def unchanged_flag(
    anyio_backend: str, flag_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Flag]:
    """For tests that change nothing, which they share."""
    async with running_flag(flag_home, tmp_path_factory.mktemp("unchanged") / "home") as flag:
        yield flag


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory whose database has no rows; tests copy it."""
    home = tmp_path_factory.mktemp("empty_registry") / "home"
    registry = Registry(home)
    db.migrate(registry.engine, home)
    registry.engine.dispose()
    return home


@pytest.fixture
def registry(empty_registry: Path, tmp_path: Path) -> Iterator[Registry]:
    """A registry without a server."""
    registry = Registry(shutil.copytree(empty_registry, tmp_path / "home"))
    yield registry
    registry.engine.dispose()
