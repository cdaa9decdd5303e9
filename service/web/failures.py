"""What FastAPI's own errors and ours look like on the wire: problem documents, all of them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from registry.errors import FieldError, TriviumError
from service.web.auth import Call
from service.web.errors import MEDIA_TYPE, encode, problem, status_of


def install(app: FastAPI) -> None:
    app.add_exception_handler(TriviumError, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _unreadable)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, TriviumError)
    return _answer(request, status_of(error), str(error), getattr(error, "errors", ()))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _answer(request, error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def _unreadable(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = tuple(_fault(e) for e in error.errors())
    return _answer(request, 422, "; ".join(f"{f.field}: {f.message}" for f in faults[:3]), faults)


def _fault(found: dict[str, Any]) -> FieldError:
    where, *path = found["loc"]
    field = ".".join(str(p) for p in path) or str(where)
    expected = found.get("ctx", {}).get("expected") or found.get("ctx", {}).get("pattern")
    return FieldError(found["msg"], field=field, expected=None if expected is None else str(expected))


def _answer(request: Request, status: int, detail: str, faults: tuple[FieldError, ...] = ()) -> Response:
    call: Call = request.scope["call"]
    body = problem(status, detail, request.url.path, call.request_id, faults)
    return Response(encode(body), status, media_type=MEDIA_TYPE)
