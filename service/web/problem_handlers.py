"""What FastAPI's own errors and ours look like on the wire: problem documents, all of them."""

from __future__ import annotations

import errno
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Route

from registry.errors import FieldError, TriviumError
from registry.names import NAME_PATTERN, VERSION_PATTERN
from service import telemetry
from service.web.auth import Call
from service.web.problems import MEDIA_TYPE, RETRY_AFTER, encode, problem, status_of

log = telemetry.logger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_WHOLE = "a whole number"
_TIME = "a time such as 2026-03-03T12:00:00Z"
_KINDS = {  # pydantic's types of error that mean: this is another kind of value
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text",
    "list_type": "a list",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "an object"),
    **dict.fromkeys(("datetime_type", "datetime_parsing", "datetime_from_date_parsing"), _TIME),
}
_UNIONS = {"union_tag_not_found", "union_tag_invalid"}
_FAULTS = {  # and those that mean more: what is wrong, what was expected, the fix
    "missing": ("it is missing", "a value", "send it"),
    "extra_forbidden": ("no such field", "no such field", "leave it out"),
    "greater_than_equal": ("too small", "{ge} or more", "send {}"),
    "greater_than": ("too small", "more than {gt}", "send {}"),
    "less_than_equal": ("too large", "{le} or less", "send {}"),
    "less_than": ("too large", "less than {lt}", "send {}"),
    "string_too_short": ("too short", "text of {min_length} or more characters", "send {}"),
    "string_too_long": ("too long", "text of at most {max_length} characters", "send {}"),
    "too_short": ("too few", "{min_length} or more entries", "send {}"),
    "too_long": ("too many", "at most {max_length} entries", "send {}"),
    "string_pattern_mismatch": ("not in the form that is taken", "{pattern}", "send {}"),
    "literal_error": ("none of the choices", "{expected}", "send {}"),
    "union_tag_invalid": ("none of the choices", "{expected_tags}", "send one of {}"),
    "union_tag_not_found": ("it is missing", "a value", "send it"),
}
_PATTERNS = {  # patterns in words
    NAME_PATTERN: "1 to 63 of a-z 0-9 _ . - that start with a letter or digit",
    "^[0-9a-f]{64}$": "a sha256, 64 digits of 0-9 a-f",
    VERSION_PATTERN: "a version such as 3.11.7",
}


def install(app: FastAPI) -> None:
    app.add_exception_handler(TriviumError, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(OperationalError, _database)  # locked, full, or gone
    app.add_exception_handler(PoolTimeout, _database)
    app.add_exception_handler(OSError, _disk)
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


async def _disk(request: Request, error: Exception) -> Response:
    """Nothing more can be kept: the operator's to put right, and no riddle for who asked."""
    if not isinstance(error, OSError) or error.errno not in _FULL:
        raise error
    call: Call = request.scope["call"]
    log.error("disk.failed", request_id=call.request_id, error=str(error))
    return _answer(request, 507, f"the server's data directory cannot be written to: {error.strerror}")


async def _broken(request: Request, error: Exception) -> Response:
    """Nobody has foreseen it. `Guard` logs it: Starlette raises it again behind this answer."""
    return _answer(request, 500, "something went wrong here; the server's log has it under this request_id")


async def _unreadable(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = tuple(_fault(e, error.body) for e in error.errors())
    return _answer(request, 422, "; ".join(f"{f.field}: {f.message}" for f in faults[:3]), faults)


def _fault(found: dict[str, Any], body: Any) -> FieldError:
    """In our own words; in pydantic's, where its type is none that our schemas lead to."""
    where, *path = found["loc"]
    if where == "body":
        path = _in_body(path, body)
    kind, context = found["type"], {k: _plain(v) for k, v in found.get("ctx", {}).items()}
    if kind == "json_invalid":  # the rest of its place is a count of characters
        return FieldError(f"the body is no JSON: {context['error']}", field=str(where), expected="JSON")
    if kind in _UNIONS:
        path.append(context["discriminator"].strip("'"))
    field = ".".join(str(p) for p in path) or str(where)
    if kind == "value_error":  # raised by our own code, as "not <what is expected>"
        message = str(context["error"])
        return FieldError(message, field=field, expected=message.removeprefix("not "))
    if kind == "extra_forbidden" and where == "query":
        return FieldError("no such parameter; leave it out", field=field, expected="no such parameter")
    if kind in _KINDS:
        return FieldError(f"not {_KINDS[kind]}; send {_KINDS[kind]}", field=field, expected=_KINDS[kind])
    if kind not in _FAULTS:
        return FieldError(found["msg"], field=field)
    what, template, fix = _FAULTS[kind]
    expected = template.format(**context)
    shown = _PATTERNS.get(expected, expected)
    return FieldError(f"{what}; {fix.format(shown)}", field=field, expected=expected)


def _in_body(path: list[Any], body: Any) -> list[Any]:
    """`path` without what stands for no field: pydantic names the member of a union, too, by its `kind`."""
    found, here = [], body
    for part in path:
        if isinstance(here, dict) and part not in here and part == here.get("kind"):
            continue
        found.append(part)
        here = here.get(part) if isinstance(here, dict) else None
    return found


def _plain(value: Any) -> Any:
    """A bound of a float field without the `.0`."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _answer(request: Request, status: int, detail: str, faults: tuple[FieldError, ...] = ()) -> Response:
    call: Call = request.scope["call"]
    body = problem(status, detail, request.scope["path"], call.request_id, faults)
    headers = {"Retry-After": RETRY_AFTER[status]} if status in RETRY_AFTER else None
    return Response(encode(body), status, headers, MEDIA_TYPE)
