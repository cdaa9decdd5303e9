from __future__ import annotations

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="session")
def one_thread_per_library() -> Iterator[None]:
    """As in a build child: on a busy machine OpenMP's threads wait for each other and spin."""
    with threadpool_limits(limits=1):
        yield
