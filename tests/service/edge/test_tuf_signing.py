"""The background task that signs TUF documents."""

from __future__ import annotations

import asyncio

import pytest

from service.edge.tuf_signing import TufSigning
from tests.service.api import Api

pytestmark = pytest.mark.anyio
TIMEOUT_S = 30.0


@pytest.mark.parametrize("iterations", range(5))
async def test_the_task_ends_when_cancelled_at_the_moment_of_a_change(api: Api, iterations: int):
    """As in a shutdown right after a build: the server waits for the end of this task."""
    changed = asyncio.Event()
    task = asyncio.create_task(TufSigning(api.services).run(changed))
    await _run_loop(5)  # until the task waits
    changed.set()
    await _run_loop(iterations)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=TIMEOUT_S)
    task.cancel()  # if it is still running, end it for the other tests
    assert done
    assert task.cancelled()


async def _run_loop(count: int) -> None:
    """Run `count` iterations of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)
