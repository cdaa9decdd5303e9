"""The outermost layer, pure ASGI: every request gets an id, a key check, a count and, if need be, a log line.

Nothing but `PUBLIC` answers without a valid key. Which scope a call needs is said where the call is
(`deps.Requires`, the hot path); a route that forgets to say it does not start (`deps.check_guarded`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry import keys
from registry.errors import TriviumError
from registry.keys import Key
from service import telemetry
from service.runtime.snapshot import Snapshot
from service.web.problems import ProblemAnswer, problem, status_of

PUBLIC = re.compile(r"/livez|/readyz|/healthz|/docs|/v1/models/[^/]+/docs|/static/[^?]*")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:/+=@-]{1,128}\Z")
_QUIET = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})  # answers that are not worth a line
SLOW_S = 1.0
"""Predictions are logged only when they fail or take longer than this: a line costs more than a row."""

log = telemetry.logger("trivium.http")


@dataclass(slots=True)
class Call:
    """What the layers inside know about a request. `route` is its template, for metrics and logs."""

    request_id: str
    key: Key | None
    route: str | None = None
    quiet: bool = False  # log it only when it fails or is slow
    status: int = 500


def forbid(key: Key | None, *scopes: str, model: str | None = None) -> str | None:
    """Why `key` may not do what one of `scopes` allows ("any": any key), or None when it may."""
    if key is None or not ("any" in scopes or any(map(key.allows, scopes))):
        return f"this key lacks the scope {' or '.join(scopes)}"
    if model is not None and not key.reaches(model):
        return f"this key is not for the model {model}"
    if model is None and "admin" in scopes and key.models is not None:  # or it could make itself another
        return "this key is for some models only, and this is about the whole registry"
    return None


def check_public(routes: Sequence[Route]) -> None:
    """Raises `RuntimeError` when one of them is not `PUBLIC`: these routes ask for no scope."""
    for route in routes:
        if PUBLIC.fullmatch(route.path_format) is None:
            raise RuntimeError(f"{route.path}: not public, so it must be a route that names its scope")


class Guard:
    def __init__(self, app: ASGIApp, snapshot: Snapshot) -> None:
        self._app = app
        self._snapshot = snapshot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # there is none here
            await send({"type": "websocket.close", "code": 1008})
            return
        start = time.perf_counter()
        authorization, request_id = _headers(scope)
        call = Call(request_id, self._key(authorization))
        scope["call"] = call
        answer = _Answer(call, send)
        try:
            if call.key is not None or _is_public(scope):
                await self._app(scope, receive, answer)
            else:
                await _unauthorized(scope, call, bool(authorization))(scope, receive, answer)
        except Exception as error:
            if answer.finished:  # by FastAPI, which raises it again for us to see
                _log(error, scope, call)
                return
            if answer.started:
                raise
            await _failed(error, scope, call)(scope, receive, answer)
        finally:
            _account(scope, call, time.perf_counter() - start)

    def _key(self, authorization: bytes) -> Key | None:
        scheme, _, presented = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        return keys.verify(presented.strip().decode("latin-1"), self._snapshot.state.keys)


class _Answer:
    """`send`, with the request's id among the headers and the status noted."""

    __slots__ = ("_call", "_send", "finished", "started")

    def __init__(self, call: Call, send: Send) -> None:
        self._call, self._send, self.started, self.finished = call, send, False, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._call.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self._call.request_id.encode()),
            ]
        elif message["type"] == "http.response.body":
            self.finished = not message.get("more_body")
        await self._send(message)


def _headers(scope: Scope) -> tuple[bytes, str]:
    authorization, request_id = b"", b""
    for name, value in scope["headers"]:
        if name == b"authorization":
            authorization = value
        elif name == b"x-request-id":
            request_id = value
    if _REQUEST_ID.match(request_id):
        return authorization, request_id.decode()
    return authorization, telemetry.make_id("req")


def _is_public(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD") and PUBLIC.fullmatch(scope["path"]) is not None


def _unauthorized(scope: Scope, call: Call, presented: bool) -> ProblemAnswer:
    detail = (
        "the API key is unknown, revoked or expired"
        if presented
        else "an API key is needed: send the header `Authorization: Bearer KEY`"
    )
    call.route = "unauthorized"
    return ProblemAnswer(
        problem(401, detail, scope["path"], call.request_id), [(b"www-authenticate", b"Bearer")]
    )


def _failed(error: Exception, scope: Scope, call: Call) -> ProblemAnswer:
    """The answer to an error that nobody inside has turned into one."""
    if isinstance(error, TriviumError):
        faults = getattr(error, "errors", ())
        return ProblemAnswer(problem(status_of(error), str(error), scope["path"], call.request_id, faults))
    if isinstance(error, HTTPException):
        headers = [(k.lower().encode(), v.encode()) for k, v in (error.headers or {}).items()]
        return ProblemAnswer(
            problem(error.status_code, error.detail, scope["path"], call.request_id), headers
        )
    _log(error, scope, call)
    detail = "something went wrong here; the server's log has it under this request_id"
    return ProblemAnswer(problem(500, detail, scope["path"], call.request_id))


def _log(error: Exception, scope: Scope, call: Call) -> None:
    log.error("request.failed", request_id=call.request_id, path=scope["path"], exc_info=error)


def _account(scope: Scope, call: Call, seconds: float) -> None:
    route = call.route or getattr(scope.get("route"), "path_format", None) or "unknown"
    telemetry.count_request(route, scope["method"], call.status, seconds)
    if call.status >= 500 or seconds > SLOW_S or not (call.quiet or scope["path"] in _QUIET):
        log.info(
            "request",
            request_id=call.request_id,
            method=scope["method"],
            path=scope["path"],
            status=call.status,
            ms=round(seconds * 1000, 1),
            key=call.key.id if call.key else None,
        )
