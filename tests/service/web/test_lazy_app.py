"""An application that comes late: who waits for it, and what they hear when it does not come."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.web.lazy_app import Late

pytestmark = pytest.mark.anyio


class Making:
    """`make`, which takes until `go` is set; what is made writes down who called it."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.times = 0
        self.called: list[str] = []

    def make(self) -> ASGIApp:
        self.times += 1
        self.begun.set()
        self.go.wait(30)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            self.called.append(scope["path"])

        return app


async def _nothing() -> Message:
    return {}


async def _nowhere(_: Message) -> None: ...


def _call(late: Late[ASGIApp], path: str) -> Awaitable[None]:
    return late({"type": "http", "path": path}, _nothing, _nowhere)


async def test_calls_that_come_before_it_wait_and_are_answered_by_the_one_that_is_made():
    making = Making()
    late = Late(making.make)
    calls = [asyncio.ensure_future(_call(late, path)) for path in ("/a", "/b")]
    await asyncio.to_thread(making.begun.wait, 30)
    assert making.called == []
    making.go.set()
    await asyncio.gather(*calls)
    await _call(late, "/c")
    assert (sorted(making.called), making.times) == (["/a", "/b", "/c"], 1)


async def test_a_client_that_goes_away_does_not_stop_the_making():
    making = Making()
    late = Late(making.make)
    gone, stays = asyncio.ensure_future(_call(late, "/gone")), asyncio.ensure_future(_call(late, "/stays"))
    await asyncio.to_thread(making.begun.wait, 30)
    gone.cancel()
    making.go.set()
    await stays
    assert (gone.cancelled(), making.called, making.times) == (True, ["/stays"], 1)


async def test_what_its_making_raises_is_raised_in_every_call():
    def make() -> ASGIApp:
        raise RuntimeError("a route names no scope")

    late = Late(make)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="names no scope"):
            await _call(late, "/a")
