"""The application with small real models: in this process over ASGI, or as a server process."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from registry import db
from service.builds.forkserver import ForkServer
from service.config import Settings
from tests.harness.server import Server, serving
from tests.service.api import Api, running_app
from tests.service.estimators import models_of_every_task, sign_classifier
from tests.service.shared_template import shared_template

NUMBERS = itertools.count(1)
"""Of the models that tests publish: the start of a name may occur twice."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def published_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a model of every task, each with a champion. Built once for all test processes.

    `flag` has two versions with opposite answers; the first is the champion.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    home = shared / "published"
    with db.locked(shared / "published.lock"):
        if not home.exists():
            partial = shared / "publishing"
            asyncio.run(_publish(partial))
            partial.rename(home)
    return home


async def _publish(home: Path) -> None:
    async with asyncio.timeout(300), running_app(Settings(home=home, build_concurrency=4)) as api:
        publications = [(n, f, {"alias": "champion"}) for n, f in models_of_every_task().items()]
        publications += [
            ("flag", sign_classifier(), {"alias": "champion"}),
            ("flag", sign_classifier(swapped=True), {}),
        ]
        # One after the other: on a busy machine, one of many writers would wait longer than SQLite's timeout.
        locations = [await api.start_build(n, f, **fields) for n, f, fields in publications]
        records = await asyncio.gather(*(api.wait_for_build(location) for location in locations))
    assert [r["report"] for r in records if r["state"] != "ready"] == []


@pytest.fixture(scope="session")
def shared_forks() -> ForkServer:
    """A fork server that tests share; they do not kill its template."""
    return shared_template()


@pytest.fixture
def home(published_home: Path, tmp_path: Path) -> Path:
    """A copy of `published_home` for one test."""
    return Path(shutil.copytree(published_home, tmp_path / "home"))


@pytest.fixture
def unique_name(request: pytest.FixtureRequest) -> str:
    """A name for a model that only this test uses, and only this run of it."""
    return f"{request.node.originalname.lower()[:56]}-{next(NUMBERS)}"


@pytest.fixture(scope="session")
async def api(
    anyio_backend: str, published_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Api]:
    """The application that tests share.

    They do not change the models of `published_home`, and their own models have names of their own.
    """
    home = shutil.copytree(published_home, tmp_path_factory.mktemp("api") / "home")
    async with running_app(Settings(home=home, grpc_port=0)) as api:
        yield api


@pytest.fixture(scope="session")
def server(published_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server process that tests share, as `api`."""
    home = shutil.copytree(published_home, tmp_path_factory.mktemp("served") / "home")
    with serving(home) as server:
        yield server
