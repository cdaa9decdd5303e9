"""What FastAPI's own errors and ours look like on the wire: problem documents, all of them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Route

from registry.errors import FieldError, TriviumError
from service import telemetry
from service.web.auth import Call
from service.web.errors import MEDIA_TYPE, encode, problem, status_of

log = telemetry.logger(__name__)


def install(app: FastAPI) -> None:
    app.add_exception_handler(TriviumError, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(OperationalError, _database)  # locked, full, or gone
    app.add_exception_handler(PoolTimeout, _database)
    app.add_exception_handler(Exception, _broken)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, TriviumError)
    return _answer(request, status_of(error), str(error), getattr(error, "errors", ()))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400 and error.__cause__ is not None:  # FastAPI could not read the body
        message = "the body cannot be read as JSON in UTF-8, or nests too deeply"
        return _answer(request, 422, message, (FieldError(message, field="body", expected="JSON"),))
    response = _answer(request, error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    if error.status_code == 405:  # Starlette names the methods of the first route only
        response.headers["Allow"] = ", ".join(_allowed(request))
    return response


def _allowed(request: Request) -> list[str]:
    routes = [r for r in request.app.router.routes if isinstance(r, Route)]
    here = [r for r in routes if r.path_regex.match(request.scope["path"])]
    return sorted({method for route in here for method in route.methods or ()})


async def _database(request: Request, error: Exception) -> Response:
    call: Call = request.scope["call"]
    log.error("database.failed", request_id=call.request_id, error=str(error))
    return _answer(request, 503, "the registry's database does not answer; try again")


async def _broken(request: Request, error: Exception) -> Response:
    """Nobody has foreseen it. `Guard` logs it: Starlette raises it again behind this answer."""
    return _answer(request, 500, "something went wrong here; the server's log has it under this request_id")


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
    body = problem(status, detail, request.scope["path"], call.request_id, faults)
    return Response(encode(body), status, media_type=MEDIA_TYPE)
