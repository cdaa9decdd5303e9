"""Outermost ASGI layer: request id, API key, metrics and log line of every request.

Only the `PUBLIC` paths are served without a valid key. Each route states the scope that it requires
(`deps.require_scope`, `online/hotpath.py`). The server does not start when a route states none
(`deps.check_guarded`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Literal

from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry import keys, vocabulary
from registry.errors import TriviumError
from registry.keys import Key
from service import telemetry
from service.runtime.snapshot import Snapshot
from service.web.problems import INTERNAL_ERROR, ProblemResponse, build_problem, status_of
from service.web.request_context import RequestContext, combine_headers

RequiredScope = vocabulary.Scope | Literal["any"]
"""What a route requires of the caller's key; "any": any valid key is enough."""

PUBLIC = re.compile(r"/livez|/readyz|/healthz|/docs|/v1/models/[^/]+/docs|/static/[^?]*")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:/+=@-]{1,128}\Z")
_QUIET_PATHS = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})  # logged on failure or when slow
UNAUTHORIZED = "unauthorized"
"""The route of all calls without a valid key, in metrics."""
SLOW_S = 1.0
"""Quiet requests that take longer are logged. Predictions are quiet: a log line costs more than a row."""

log = telemetry.logger("trivium.http")


def denial_reason(key: Key | None, *scopes: RequiredScope, model: str | None = None) -> str | None:
    """Return why `key` is denied access, or None when it is allowed.

    The key needs one of `scopes`, and access to `model`. Without `model`, admin
    routes deny keys that are limited to some models: such a key could create an unlimited one.
    """
    if key is None or ("any" not in scopes and not key.allows(*scopes)):
        return f"this key lacks the scope {' or '.join(scopes)}"
    if model is not None and not key.reaches(model):
        return f"this key is not for the model {model}"
    if model is None and "admin" in scopes and key.models is not None:
        return "this key is limited to some models, and this request concerns the whole registry"
    return None


def check_public(routes: Sequence[Route]) -> None:
    """Raise `RuntimeError` unless every route's path is `PUBLIC`: these routes check no scope."""
    for route in routes:
        if PUBLIC.fullmatch(route.path_format) is None:
            raise RuntimeError(f"{route.path}: not public, so it must be a FastAPI route with a scope")


class KeyVerifier:
    """Verifies the keys of calls, `Authorization: Bearer KEY`. Not thread-safe."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._verifier = keys.Verifier()

    def authenticate(self, headers: Mapping[bytes, bytes]) -> RequestContext:
        """Return the request's context: its id, and its key if the headers have a valid one."""
        return RequestContext(
            request_id_of(headers), self.verify(headers.get(b"authorization", b"")), headers
        )

    def verify(self, authorization: bytes) -> Key | None:
        """Return the key, or None if there is none or it is unknown, revoked or expired."""
        scheme, _, key_text = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        return self._verifier.verify(key_text.strip().decode("latin-1"), self._snapshot.state.keys)


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, snapshot: Snapshot) -> None:
        self._app = app
        self._keys = KeyVerifier(snapshot)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # not supported
            await send({"type": "websocket.close", "code": 1008})
            return
        start = time.perf_counter()
        context = scope["context"] = self._keys.authenticate(combine_headers(scope["headers"]))
        response = _TrackedSend(context, send)
        try:
            if context.key is not None or _is_public(scope):
                await self._app(scope, receive, response)
            else:
                await _unauthorized(scope, context)(scope, receive, response)
        except Exception as error:
            if response.finished:  # FastAPI sent a 500 and raised the error again, for the log
                _log_error(error, scope, context)
                return
            if response.started:
                raise
            await _error_response(error, scope, context)(scope, receive, response)
        finally:
            context.route = context.route or getattr(scope.get("route"), "path_format", None)
            record_request(context, scope["method"], scope["path"], time.perf_counter() - start)


class _TrackedSend:
    """Wraps `send`: adds the request id to the headers, and records the status and the progress."""

    __slots__ = ("_context", "_send", "finished", "started")

    def __init__(self, context: RequestContext, send: Send) -> None:
        self._context, self._send, self.started, self.finished = context, send, False, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._context.status = message["status"]
            message["headers"] = [*message.get("headers", ()), self._context.id_header]
        elif message["type"] == "http.response.body":
            self.finished = not message.get("more_body")
        await self._send(message)


def request_id_of(headers: Mapping[bytes, bytes]) -> str:
    """Return the client's request id if it is well-formed, else a new one."""
    request_id = headers.get(b"x-request-id")
    if request_id is not None and _REQUEST_ID.match(request_id):
        return request_id.decode()
    return telemetry.make_id("req")


def _is_public(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD") and PUBLIC.fullmatch(scope["path"]) is not None


def unauthorized_reason(has_header: bool) -> str:
    """Return why a call without a valid key is denied."""
    if has_header:
        return "the API key is unknown, revoked or expired"
    return "an API key is required: send the header `Authorization: Bearer KEY`"


def _unauthorized(scope: Scope, context: RequestContext) -> ProblemResponse:
    context.route = UNAUTHORIZED
    problem = build_problem(
        401,
        unauthorized_reason(bool(context.headers.get(b"authorization"))),
        scope["path"],
        context.request_id,
    )
    return ProblemResponse(problem, [(b"www-authenticate", b"Bearer")])


def _error_response(error: Exception, scope: Scope, context: RequestContext) -> ProblemResponse:
    """Build the response to an error that no inner layer handled."""
    path, request_id = scope["path"], context.request_id
    if isinstance(error, TriviumError):
        field_errors = getattr(error, "errors", ())
        return ProblemResponse(build_problem(status_of(error), str(error), path, request_id, field_errors))
    if isinstance(error, HTTPException):
        headers = [(k.lower().encode(), v.encode()) for k, v in (error.headers or {}).items()]
        return ProblemResponse(build_problem(error.status_code, error.detail, path, request_id), headers)
    _log_error(error, scope, context)
    return ProblemResponse(build_problem(500, INTERNAL_ERROR, path, request_id))


def _log_error(error: Exception, scope: Scope, context: RequestContext) -> None:
    log.error("request.failed", request_id=context.request_id, path=scope["path"], exc_info=error)


def record_request(context: RequestContext, method: str, path: str, seconds: float) -> None:
    """Count the request, and log it unless it is quiet, fast and successful."""
    telemetry.request_meter(context.route or "unknown", method, context.status).observe(seconds)
    quiet = context.quiet or path in _QUIET_PATHS
    if context.status >= 500 or seconds > SLOW_S or not quiet:
        log.info(
            "request",
            request_id=context.request_id,
            method=method,
            path=path,
            status=context.status,
            ms=round(seconds * 1000, 1),
            key=context.key.id if context.key else None,
        )
