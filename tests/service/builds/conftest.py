from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.builds.forkserver import ForkServer


@pytest.fixture(scope="session")
def shared_forks() -> Iterator[ForkServer]:
    """A template for the tests that leave it alive."""
    forks = ForkServer()
    forks.start()
    yield forks
    forks.stop()


@pytest.fixture
def own_forks() -> Iterator[ForkServer]:
    """A template that the test may kill."""
    forks = ForkServer()
    forks.start()
    yield forks
    forks.stop()
