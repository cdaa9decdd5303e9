"""No request body may be larger than what its call needs; the rest is cut off while it streams in."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ARTIFACTS = "/v1/artifacts/"


class Limits:
    """Raises 413 as soon as the announced or the received size is above the bound."""

    def __init__(self, app: ASGIApp, body_bytes: int, artifact_bytes: int) -> None:
        self._app = app
        self._body = body_bytes
        self._artifact = artifact_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        bound = self._artifact if scope["path"].startswith(ARTIFACTS) else self._body
        if _announced(scope) > bound:
            raise _too_large(bound)
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > bound:
                raise _too_large(bound)
            return message

        await self._app(scope, bounded, send)


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


def _too_large(bound: int) -> HTTPException:
    return HTTPException(413, f"the request body is larger than {bound} bytes")
