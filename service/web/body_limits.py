"""Limits the size of request bodies while they are received, and decodes compressed ones."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.web.request_context import RequestContext

BODY_HEADERS = (b"content-length", b"content-encoding")
"""Headers of the encoded body, which the application behind does not see."""
MAX_LENGTH_DIGITS = 20
"""The size of a body with a longer Content-Length, which has leading zeros, counts as received."""
ARTIFACTS = "/v1/artifacts/"
"""Uploads under this path have their own limit."""


class BodyLimits:
    """ASGI middleware behind `Guard`. Raises HTTPException 413 for a body above its limit.

    The announced size counts if there is one, otherwise the received size. The limit also applies to the
    decoded size of a compressed body. The application behind sees no Content-Encoding. Raises as
    `DecodedBody`.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_artifact_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_artifact_bytes = max_artifact_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        limit = self._max_artifact_bytes if scope["path"].startswith(ARTIFACTS) else self._max_body_bytes
        context: RequestContext = scope["context"]
        length = context.headers.get(b"content-length", b"")
        is_announced = length.isdigit() and len(length) <= MAX_LENGTH_DIGITS
        if is_announced and int(length) > limit:
            raise _too_large(limit)
        coding = context.headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
        if coding not in ("", "identity"):
            from service.web.content_coding import DecodedBody  # few requests are compressed

            scope["headers"] = [header for header in scope["headers"] if header[0] not in BODY_HEADERS]
            await self._app(scope, DecodedBody(_limited(receive, limit), coding, limit), send)
        elif is_announced:  # the server's parser ends the body there
            await self._app(scope, receive, send)
        else:
            await self._app(scope, _limited(receive, limit), send)


def _limited(receive: Receive, limit: int) -> Receive:
    """Return a `receive` that raises HTTPException 413 once the body is larger than `limit`."""
    received = 0

    async def limited_receive() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise _too_large(limit)
        return message

    return limited_receive


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the request body is larger than {limit} bytes")
