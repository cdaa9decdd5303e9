"""The chore that signs ends when it is told to, whatever else happens at that moment."""

from __future__ import annotations

import asyncio

import pytest

from service.edge.tuf_signing import SigningChore
from tests.service.api import Api

pytestmark = pytest.mark.anyio
END_S = 30.0


@pytest.mark.parametrize("turns", range(5))
async def test_it_ends_when_it_is_cancelled_just_as_the_registry_moves(api: Api, turns: int):
    """A shutdown right after a build: the server waits for this task before it ends."""
    moved = asyncio.Event()
    chore = asyncio.create_task(SigningChore(api.services).run(moved))
    await _turns(5)  # it waits now
    moved.set()
    await _turns(turns)
    chore.cancel()
    done, _ = await asyncio.wait({chore}, timeout=END_S)
    chore.cancel()  # so that the other tests are without it, if it goes on
    assert done
    assert chore.cancelled()


async def _turns(count: int) -> None:
    """Let everything that is ready run, so many times."""
    for _ in range(count):
        await asyncio.sleep(0)
