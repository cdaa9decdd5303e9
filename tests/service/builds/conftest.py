from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from registry import db
from registry.artifacts import Store
from service.builds.forkserver import ForkServer
from service.builds.supervisor import Supervisor
from service.config import Settings
from tests.service.builds import small_template
from tests.service.shared_template import SharedTemplate


@pytest.fixture
def own_forks() -> Iterator[ForkServer]:
    """A fork server whose template the test may kill, and whose children do not answer."""
    forks = ForkServer(small_template.NAME)
    yield forks
    forks.stop()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", build_timeout_s=60)


@pytest.fixture
def sessions(settings: Settings) -> Iterator[db.Sessions]:
    engine = db.connect(settings.url)
    db.migrate(engine, settings.home)
    yield db.sessions(engine)
    engine.dispose()


@pytest.fixture
def store(settings: Settings) -> Store:
    return Store(settings.blobs)


@pytest.fixture
def changes() -> SimpleQueue[float]:
    return SimpleQueue()


@pytest.fixture
def running(
    settings: Settings, sessions: db.Sessions, store: Store, changes: SimpleQueue[float]
) -> Iterator[Supervisor]:
    """A supervisor that forks from the template that tests share."""
    running = Supervisor(settings, sessions, store, lambda: changes.put(time.monotonic()), SharedTemplate())
    running.start()
    yield running
    running.stop(5)
