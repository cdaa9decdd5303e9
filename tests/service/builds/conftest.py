from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest

from registry import db
from registry.artifacts import Store
from service.builds.forkserver import ForkServer
from service.builds.supervisor import Supervisor
from service.config import Settings


@contextmanager
def ready_to_fork() -> Iterator[ForkServer]:
    """A fork server with a ready template: its start takes seconds, which must not count in time limits."""
    forks = ForkServer()
    forks.start()
    try:
        forks.fork("build").end()
        yield forks
    finally:
        forks.stop()


@pytest.fixture(scope="session")
def shared_forks() -> Iterator[ForkServer]:
    """A fork server that tests share; they do not kill its template."""
    with ready_to_fork() as forks:
        yield forks


@pytest.fixture
def own_forks() -> Iterator[ForkServer]:
    """A fork server whose template the test may kill."""
    with ready_to_fork() as forks:
        yield forks


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
    running = Supervisor(settings, sessions, store, on_change=lambda: changes.put(time.monotonic()))
    running.start()
    yield running
    running.stop(5)
