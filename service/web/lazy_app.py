"""An ASGI application that is made in a thread while its server already answers other calls.

The management routes are one: FastAPI and they take a third of a start, and no prediction needs them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

App = TypeVar("App", bound=ASGIApp)


class Late(Generic[App]):
    """Made once, at the first call or the first `made`; calls that come before it is there wait for it."""

    def __init__(self, make: Callable[[], App]) -> None:
        self._make = make
        self._making: asyncio.Task[App] | None = None

    async def made(self) -> App:
        """The application. Raises what `make` raises, each time."""
        if self._making is None:
            self._making = asyncio.create_task(asyncio.to_thread(self._make))
        return await asyncio.shield(self._making)  # a client that goes away does not stop it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = await self.made()
        await app(scope, receive, send)
