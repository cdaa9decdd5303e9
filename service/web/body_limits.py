"""Limits the size of request bodies, also of those without Content-Length, while they are received."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ARTIFACTS = "/v1/artifacts/"
"""Uploads under this path have their own limit."""


class BodyLimits:
    """ASGI middleware. Raises HTTPException 413 when the announced or the received size exceeds the limit."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_artifact_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_artifact_bytes = max_artifact_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        limit = self._max_artifact_bytes if scope["path"].startswith(ARTIFACTS) else self._max_body_bytes
        if _content_length(scope) > limit:
            raise _too_large(limit)
        received = 0

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit)
            return message

        await self._app(scope, limited_receive, send)


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the request body is larger than {limit} bytes")
