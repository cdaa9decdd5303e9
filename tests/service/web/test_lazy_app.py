"""An application that is created while the server already runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.web.lazy_app import LazyApp

pytestmark = pytest.mark.anyio


class SlowCreation:
    """`create` takes until `may_finish` is set; the application records the paths of its requests."""

    def __init__(self) -> None:
        self.started, self.may_finish = threading.Event(), threading.Event()
        self.count = 0
        self.paths: list[str] = []

    def create(self) -> ASGIApp:
        self.count += 1
        self.started.set()
        self.may_finish.wait(30)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            self.paths.append(scope["path"])

        return app


async def _receive() -> Message:
    return {}


async def _send(_: Message) -> None: ...


def _request(app: LazyApp[ASGIApp], path: str) -> Awaitable[None]:
    return app({"type": "http", "path": path}, _receive, _send)


async def test_requests_wait_for_the_application_which_is_created_once():
    creation = SlowCreation()
    lazy = LazyApp(creation.create)
    requests = [asyncio.ensure_future(_request(lazy, path)) for path in ("/a", "/b")]
    await asyncio.to_thread(creation.started.wait, 30)
    assert creation.paths == []
    creation.may_finish.set()
    await asyncio.gather(*requests)
    await _request(lazy, "/c")
    assert (sorted(creation.paths), creation.count) == (["/a", "/b", "/c"], 1)


async def test_a_cancelled_request_does_not_cancel_the_creation():
    creation = SlowCreation()
    lazy = LazyApp(creation.create)
    cancelled, waiting = (asyncio.ensure_future(_request(lazy, p)) for p in ("/cancelled", "/waiting"))
    await asyncio.to_thread(creation.started.wait, 30)
    cancelled.cancel()
    creation.may_finish.set()
    await waiting
    assert (cancelled.cancelled(), creation.paths, creation.count) == (True, ["/waiting"], 1)


async def test_an_error_of_the_creation_is_raised_in_every_request():
    def create() -> ASGIApp:
        raise RuntimeError("a route requires no scope")

    lazy = LazyApp(create)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="requires no scope"):
            await _request(lazy, "/a")
