"""Predictions over HTTP: raw ASGI in front of FastAPI, because a FastAPI route costs more than a small model.

`POST /v1/models/{name}/predict[?alias=]` and `POST /v1/models/{name}/versions/{v}/predict`, and the same for
`/v1/.../invocations` and `/v2/.../infer`, which differ only in their format (`call_formats.py`). This module
reads requests and sends answers; `predictor.py` predicts.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from registry.errors import invalid_field
from registry.names import check_name
from service.online.call_formats import DOORS
from service.online.predictor import Prediction, Predictor
from service.web.auth import denial_reason
from service.web.request_context import RequestContext

_PATH = re.compile(r"(/v[12])/models/([^/]+)(?:/versions/([^/]+))?(/predict|/invocations|/infer)")
_NUMBER = re.compile(r"[1-9][0-9]{0,9}")


class HotPath:
    """ASGI middleware: serves the paths of predictions, and passes all others on to `app`."""

    def __init__(self, app: ASGIApp, predictor: Predictor) -> None:
        self._app = app
        self._predictor = predictor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (match := _PATH.fullmatch(scope["path"])) is None:
            await self._app(scope, receive, send)
            return
        api, name, number, action = match.groups()
        if (door := DOORS.get((api, action, number is not None))) is None:
            await self._app(scope, receive, send)
            return
        context: RequestContext = scope["context"]
        context.route = door.route
        if scope["method"] != "POST":
            raise HTTPException(405, f"{action[1:]} takes POST", headers={"Allow": "POST"})
        if (reason := denial_reason(context.key, "predict", model=name)) is not None:
            raise HTTPException(403, reason)
        alias = _alias(scope["query_string"], number is not None) if scope["query_string"] else None
        version = None if number is None else _version(number)
        target = await self._predictor.resolve(name, alias, version, context.headers)
        call_format = door.select_format(context.headers)
        prediction = await self._predictor.predict(target, call_format, await _read(receive))
        context.quiet = True
        await _send(send, prediction)


def _version(number: str) -> int:
    if _NUMBER.fullmatch(number) is None:
        raise invalid_field(
            "version",
            "not a version number",
            "an integer from 1",
            detail=f"version {number!r} is not an integer from 1",
        )
    return int(number)


def _alias(query: bytes, numbered: bool) -> str | None:
    """Return the `alias` of the query. Unknown parameters are rejected, as are unknown fields.

    `numbered`: the path names the version, so `alias` is unknown too.
    """
    alias = None
    for key, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if key != "alias" or numbered:
            raise invalid_field(
                key,
                "unknown query parameter",
                None if numbered else "alias",
                detail=f"unknown query parameter {key!r}",
            )
        if alias is not None:
            raise invalid_field("alias", "set twice", "one", detail="alias is set twice")
        alias = check_name(value, "alias")
    return alias


async def _read(receive: Receive) -> bytes:
    """Read the whole body; `BodyLimits` bounds its size."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise HTTPException(400, "the client disconnected")
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        return body
    parts = [body]
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "the client disconnected")
        parts.append(message.get("body", b""))
    return b"".join(parts)


async def _send(send: Send, prediction: Prediction) -> None:
    body, headers = prediction.answer
    headers = [
        *headers,
        (b"content-length", b"%d" % len(body)),
        *prediction.loaded.headers,  # they replace the fields of a JSON answer that a table does not have
        (b"x-prediction-id", prediction.id.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
