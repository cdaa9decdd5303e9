"""An ASGI application that is created in a thread while the server already answers other requests.

Used for the management routes: importing FastAPI and them takes a third of the start, and predictions do not
need them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

App = TypeVar("App", bound=ASGIApp)


class LazyApp(Generic[App]):
    """Created once, at the first request or the first `get`; requests that arrive earlier wait for it."""

    def __init__(self, create: Callable[[], App]) -> None:
        self._create = create
        self._creation: asyncio.Task[App] | None = None

    async def get(self) -> App:
        """Return the application. Raises what `create` raised, at every call."""
        if self._creation is None:
            self._creation = asyncio.create_task(asyncio.to_thread(self._create))
        return await asyncio.shield(self._creation)  # a client's disconnect must not cancel it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = await self.get()
        await app(scope, receive, send)
