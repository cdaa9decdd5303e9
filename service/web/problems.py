"""From an exception to an HTTP answer: one table, and RFC 9457 problem documents."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.types import Receive, Scope, Send

from registry import errors
from registry.errors import FieldError, TriviumError

STATUS: dict[type[TriviumError], int] = {  # the nearest ancestor of an error decides
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Invalid: 422,
    errors.TooLarge: 413,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 504,
    TriviumError: 500,
}
RETRY_AFTER = {503: "1"}
"""Seconds, by status: what is unavailable now is most often started again at once."""
MEDIA_TYPE = "application/problem+json"


class Problem(msgspec.Struct, omit_defaults=True):
    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[dict[str, Any]] | None = None


def status_of(error: TriviumError) -> int:
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def problem(
    status: int, detail: str, path: str, request_id: str, faults: tuple[FieldError, ...] = ()
) -> Problem:
    """`type` is about:blank: the status says what kind of problem it is, `detail` and `errors` the rest."""
    return Problem(
        type="about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=_text(detail),
        instance=quote(path, safe="/:@!$&'()*+,;=~"),  # a URI reference
        request_id=request_id,
        errors=[_entry(fault) for fault in faults] or None,
    )


def _entry(fault: FieldError) -> dict[str, Any]:
    return {
        "instance": fault.instance,
        "field": None if fault.field is None else _text(fault.field),
        "expected": None if fault.expected is None else _text(fault.expected),
        "message": _text(fault.message),
    }


def _text(found: str) -> str:
    """What a caller sent may stand in it, and half of a surrogate pair cannot be encoded."""
    return found.encode(errors="replace").decode()


def encode(error: Problem) -> bytes:
    return msgspec.json.encode(error)


class ProblemAnswer:
    """A problem as a bare ASGI answer, for the layers that stand before FastAPI."""

    def __init__(self, error: Problem, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        self._error = error
        self._headers = [*(headers or [])]
        if (retry := RETRY_AFTER.get(error.status)) is not None:
            self._headers.append((b"retry-after", retry.encode()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = encode(self._error)
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            *self._headers,
        ]
        await send({"type": "http.response.start", "status": self._error.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
