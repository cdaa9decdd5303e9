"""Predictions over HTTP: raw ASGI in front of FastAPI, because a FastAPI route costs more than a small model.

`POST /v1/models/{name}/predict[?alias=]` and `POST /v1/models/{name}/versions/{v}/predict`, and the same for
`/v1/.../invocations` and `/v2/.../infer`, which differ only in their format (`call_formats.py`). This module
reads requests and sends answers; `predictor.py` predicts.
"""

from __future__ import annotations

import re
from functools import partial
from typing import NamedTuple, NoReturn
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from registry.errors import invalid_field
from registry.names import check_name
from service.online.call_formats import DOORS, Door, Headers
from service.online.deadlines import request_deadline
from service.online.predictor import Prediction, Predictor
from service.web.auth import denial_reason
from service.web.request_context import RequestContext

_PATH = re.compile(r"(/v[12])/models/([^/]+)(?:/versions/([^/]+))?(/predict|/invocations|/infer)")
_NUMBER = re.compile(r"[1-9][0-9]{0,9}")


class ModelPath(NamedTuple):
    """A path that predicts, and what answers it: a version by number, or by alias (None: `champion`)."""

    door: Door
    model: str
    alias: str | None
    number: int | None


class _Match(NamedTuple):
    door: Door
    model: str
    number: str | None


class HotPath:
    """ASGI middleware: serves the paths of predictions, and passes all others on to `app`."""

    def __init__(self, app: ASGIApp, predictor: Predictor) -> None:
        self._app = app
        self._predictor = predictor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (match := parse_path(scope["path"])) is None:
            await self._app(scope, receive, send)
            return
        context: RequestContext = scope["context"]
        context.route = match.door.route
        if scope["method"] != "POST":
            action = scope["path"].rpartition("/")[2]
            raise HTTPException(405, f"{action} takes POST", headers={"Allow": "POST"})
        if (reason := denial_reason(context.key, "predict", model=match.model)) is not None:
            raise HTTPException(403, reason)
        door, model, alias, number = parse_query(match, scope["query_string"])
        target = await self._predictor.resolve(model, alias, number, context.headers)
        call_format = door.select_format(context.headers)
        deadline = request_deadline(context.headers)
        body = await _read(receive)
        prediction = await self._predictor.predict(
            target, call_format, body, deadline, partial(_await_disconnect, receive)
        )
        context.quiet = True
        await send({"type": "http.response.start", "status": 200, "headers": answer_headers(prediction)})
        await send({"type": "http.response.body", "body": prediction.answer.body})


def parse_path(path: str) -> _Match | None:
    """Return the parts of a path that predicts, or None."""
    if (match := _PATH.fullmatch(path)) is None:
        return None
    api, model, number, action = match.groups()
    door = DOORS.get((api, action, number is not None))
    return None if door is None else _Match(door, model, number)


def parse_query(match: _Match, query: bytes) -> ModelPath:
    """Raises `Invalid` for the version in the path, or a query parameter."""
    alias = _alias(query, match.number is not None) if query else None
    number = None if match.number is None else _version(match.number)
    return ModelPath(match.door, match.model, alias, number)


def answer_headers(prediction: Prediction) -> Headers:
    body, headers = prediction.answer
    return [
        *headers,
        (b"content-length", b"%d" % len(body)),
        *prediction.loaded.headers,  # they replace the fields of a JSON answer that a table does not have
        (b"x-prediction-id", prediction.id.encode()),
    ]


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


async def _await_disconnect(receive: Receive) -> NoReturn:
    """Wait until the client disconnects, which ends the call of a client that waits for a busy model."""
    while (await receive())["type"] != "http.disconnect":
        pass
    raise HTTPException(400, "the client disconnected")
