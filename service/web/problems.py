"""Errors on the wire: exceptions become RFC 9457 problem documents.

Three entries, one format: `ProblemResponse` for the ASGI layers in front of FastAPI, `install_handlers` for
the FastAPI application, and `problem_responses` and `problem_schemas` for the OpenAPI document. Under `/v2`
`encode_problem` writes the format of the Open Inference Protocol instead, `{"error": "text"}`.

FastAPI is imported when the handlers are installed, not with this module: the server accepts requests
before the management routes exist (see `service/app.py`).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import msgspec
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from registry import errors
from registry.errors import FieldError, TriviumError
from registry.names import HEADER_NAME_PATTERN, LIBRARY_VERSION_PATTERN, NAME_PATTERN, NUMBER_PATTERN
from service import telemetry
from service.web.request_context import RequestContext

if TYPE_CHECKING:
    from fastapi import FastAPI

MEDIA_TYPE = "application/problem+json"
STATUS: dict[type[TriviumError], int] = {  # the nearest ancestor of an error's class decides
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Invalid: 422,
    errors.TooLarge: 413,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 504,
    TriviumError: 500,
}
V2_MEDIA_TYPE = "application/json"
V2_STATUS = {422: 400}
"""The protocol has 400 for invalid requests."""
MAX_V2_FAULTS = 10
"""Faults in the text of one error under `/v2`."""

RETRY_AFTER = {503: "1"}
"""Seconds by status: most causes, such as a model process that restarts, end within a second."""

INTERNAL_ERROR = "internal server error; search the server's log for this request_id"
NO_DATABASE = "the registry's database does not answer; try again"
DESCRIPTIONS = {
    400: "The request cannot be read",
    401: "The API key is missing, unknown, revoked or expired",
    403: "The API key lacks the scope, or has no access to this model",
    404: "Not found",
    406: "Accept or Accept-Encoding excludes every available form",
    409: "The current state of the registry does not allow this",
    412: "If-Match does not match the current entity tag",
    413: "The request body is too large",
    415: "The media type or the Content-Encoding of the request body is not supported",
    416: "The range starts after the end of the file",
    422: "The input is invalid; `errors` names each field and what was expected",
    503: "The database or the model is unavailable, or too many calls wait for the model; try again",
    504: "The model did not answer within the deadline",
}
"""Descriptions for the OpenAPI document, by status."""

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_SCHEMA_REF = "#/components/schemas/{name}"

log = telemetry.logger(__name__)


class FieldProblem(msgspec.Struct):
    """An entry of `errors`."""

    instance: int | None
    field: str | None
    expected: str | None
    message: str


class Problem(msgspec.Struct, omit_defaults=True):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[FieldProblem] = []


def status_of(error: TriviumError) -> int:
    """Return the HTTP status of an error: that of its class or of the nearest ancestor in `STATUS`."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def build_problem(
    status: int, detail: str, path: str, request_id: str, field_errors: Sequence[FieldError] = ()
) -> Problem:
    """Build a problem document. `type` is about:blank: the status is the type (RFC 9457, 4.2.1)."""
    return Problem(
        type="about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=_encodable(detail),
        instance=quote(path, safe="/:@!$&'()*+,;=~"),  # a URI reference
        request_id=request_id,
        errors=[_field_problem(error) for error in field_errors],
    )


def _field_problem(error: FieldError) -> FieldProblem:
    return FieldProblem(
        instance=error.instance,
        field=None if error.field is None else _encodable(error.field),
        expected=None if error.expected is None else _encodable(error.expected),
        message=_encodable(error.message),
    )


def _encodable(text: str) -> str:
    """Replace lone surrogates: the text may quote the request, and UTF-8 cannot encode them."""
    return text.encode(errors="replace").decode()


class EncodedProblem(NamedTuple):
    status: int
    media_type: str
    body: bytes


def encode_problem(problem: Problem, path: str) -> EncodedProblem:
    """Encode `problem` for a request to `path`."""
    if path == "/v2" or path.startswith("/v2/"):
        status = V2_STATUS.get(problem.status, problem.status)
        return EncodedProblem(status, V2_MEDIA_TYPE, msgspec.json.encode({"error": text_of(problem)}))
    return EncodedProblem(problem.status, MEDIA_TYPE, msgspec.json.encode(problem))


def text_of(problem: Problem) -> str:
    """Return the detail, or all faults if there are several: text is all that the protocol's errors have."""
    if len(problem.errors) <= 1:
        return problem.detail
    faults = [
        e.message if e.instance is None else f"instance {e.instance}: {e.message}" for e in problem.errors
    ]
    more = f" (and {len(faults) - MAX_V2_FAULTS} more)" if len(faults) > MAX_V2_FAULTS else ""
    return "; ".join(faults[:MAX_V2_FAULTS]) + more


class ProblemResponse:
    """A problem document as an ASGI response, for the layers in front of FastAPI."""

    def __init__(self, problem: Problem, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._problem = problem
        self._headers = list(headers)
        if (retry := RETRY_AFTER.get(problem.status)) is not None:
            self._headers.append((b"retry-after", retry.encode()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, media_type, body = encode_problem(self._problem, scope["path"])
        headers = [
            (b"content-type", media_type.encode()),
            (b"content-length", str(len(body)).encode()),
            *self._headers,
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


# The OpenAPI document ------------------------------------------------------------------------------------


def describe_status(status: int) -> dict[str, Any]:
    """Return the description and the headers of an error response."""
    if status not in RETRY_AFTER:
        return {"description": DESCRIPTIONS[status]}
    header = {"description": "The seconds after which to try again.", "schema": {"type": "integer"}}
    return {"description": DESCRIPTIONS[status], "headers": {"Retry-After": header}}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Build the `responses=` of a route: `statuses`, and those that every guarded route may return."""
    schema = {"$ref": _SCHEMA_REF.format(name="Problem")}
    return {
        status: {**describe_status(status), "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in sorted({401, 403, 422, 503, *statuses})
    }


def v2_error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Build the `responses=` of a route under `/v2`. `default` keeps FastAPI from adding its own 422."""
    content = {V2_MEDIA_TYPE: {"schema": {"$ref": _SCHEMA_REF.format(name="InferenceError")}}}
    responses: dict[int | str, dict[str, Any]] = {
        status: {**describe_status(status), "content": content}
        for status in sorted({400, 401, 403, 503, *statuses})
    }
    return responses | {"default": {"description": "Another error", "content": content}}


def problem_schemas() -> dict[str, Any]:
    """Return the JSON schemas of `Problem` and what it refers to, for `components`."""
    return msgspec.json.schema_components((Problem,), ref_template=_SCHEMA_REF)[1]


# Exception handlers of the FastAPI application -----------------------------------------------------------


def install_handlers(app: FastAPI) -> None:
    from fastapi.exceptions import RequestValidationError  # loaded with the management routes

    app.add_exception_handler(TriviumError, _on_trivium_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(OperationalError, _on_database_error)  # locked, full or unreachable
    app.add_exception_handler(PoolTimeout, _on_database_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(OSError, _on_os_error)
    app.add_exception_handler(Exception, _on_unexpected_error)


async def _on_trivium_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TriviumError)
    return _response(request, status_of(error), str(error), getattr(error, "errors", ()))


async def _on_disconnect(request: Request, _error: Exception) -> Response:
    """The client ended its upload. This is not an error of the server."""
    return _response(request, 400, "the client disconnected")


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, TriviumError):  # raised while FastAPI received the body
        return await _on_trivium_error(request, error.__cause__)
    if error.status_code == 400 and error.__cause__ is not None:  # FastAPI could not parse the body
        message = "the body cannot be read as JSON in UTF-8, or is nested too deeply"
        return _response(request, 422, message, [FieldError(message, field="body", expected="JSON")])
    response = _response(request, error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    if error.status_code == 405:  # Starlette lists the methods of the first matching route only
        response.headers["Allow"] = ", ".join(_allowed_methods(request))
    return response


def _allowed_methods(request: Request) -> list[str]:
    routes = [r for r in request.app.router.routes if isinstance(r, Route)]
    matching = [r for r in routes if r.path_regex.match(request.scope["path"])]
    return sorted({method for route in matching for method in route.methods or ()})


async def _on_validation_error(request: Request, error: Exception) -> Response:
    details: Any = error  # RequestValidationError, which is imported in `install_handlers` only
    field_errors = [_field_error(e, details.body) for e in details.errors()]
    detail = "; ".join(f"{e.field}: {e.message}" for e in field_errors[:3])
    return _response(request, 422, detail, field_errors)


async def _on_database_error(request: Request, error: Exception) -> Response:
    context: RequestContext = request.scope["context"]
    log.error("database.failed", request_id=context.request_id, error=str(error))
    return _response(request, 503, NO_DATABASE)


async def _on_os_error(request: Request, error: Exception) -> Response:
    """Return 507 when the data directory is full or read-only; raise any other error again."""
    if not isinstance(error, OSError) or error.errno not in _DISK_FULL:
        raise error
    context: RequestContext = request.scope["context"]
    log.error("disk.failed", request_id=context.request_id, error=str(error))
    return _response(request, 507, f"the server's data directory cannot be written to: {error.strerror}")


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    """Return 500. Starlette raises the error again after this response, and `Guard` logs it."""
    return _response(request, 500, INTERNAL_ERROR)


def _response(
    request: Request, status: int, detail: str, field_errors: Sequence[FieldError] = ()
) -> Response:
    context: RequestContext = request.scope["context"]
    problem = build_problem(status, detail, request.scope["path"], context.request_id, field_errors)
    headers = {"Retry-After": RETRY_AFTER[status]} if status in RETRY_AFTER else None
    encoded = encode_problem(problem, request.scope["path"])
    return Response(encoded.body, encoded.status, headers, encoded.media_type)


# Errors of pydantic --------------------------------------------------------------------------------------

_INTEGER = "a whole number"
_TIME = "a time such as 2026-03-03T12:00:00Z"
_EXPECTED_KIND = {  # pydantic's error types for a value of another kind
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), _INTEGER),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text",
    "list_type": "a list",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "an object"),
    **dict.fromkeys(("datetime_type", "datetime_parsing", "datetime_from_date_parsing"), _TIME),
}
_UNION_ERRORS = {"union_tag_not_found", "union_tag_invalid"}
_OTHER_ERRORS = {  # pydantic's other error types: what is wrong, what was expected, what to do
    "missing": ("the value is missing", "a value", "send it"),
    "extra_forbidden": ("no such field", "no such field", "leave it out"),
    "greater_than_equal": ("too small", "{ge} or more", "send {}"),
    "greater_than": ("too small", "more than {gt}", "send {}"),
    "less_than_equal": ("too large", "{le} or less", "send {}"),
    "less_than": ("too large", "less than {lt}", "send {}"),
    "string_too_short": ("too short", "text of {min_length} or more characters", "send {}"),
    "string_too_long": ("too long", "text of at most {max_length} characters", "send {}"),
    "too_short": ("too few", "{min_length} or more entries", "send {}"),
    "too_long": ("too many", "at most {max_length} entries", "send {}"),
    "string_pattern_mismatch": ("the text does not match the pattern", "{pattern}", "send {}"),
    "literal_error": ("not one of the allowed values", "{expected}", "send {}"),
    "union_tag_invalid": ("not one of the allowed values", "{expected_tags}", "send one of {}"),
    "union_tag_not_found": ("the value is missing", "a value", "send it"),
}
_PATTERN_DESCRIPTIONS = {
    NAME_PATTERN: "1 to 63 of a-z 0-9 _ . - that start with a letter or digit",
    "^[0-9a-f]{64}$": "a sha256, 64 digits of 0-9 a-f",
    LIBRARY_VERSION_PATTERN: "a version such as 3.11.7",
    NUMBER_PATTERN: "a version number from 1",
    HEADER_NAME_PATTERN: "the name of a header",
}


def _field_error(error: dict[str, Any], body: Any) -> FieldError:
    """Convert an error of pydantic. Types that our schemas do not produce keep pydantic's message."""
    source, *path = error["loc"]  # "body", "query", "path" or "header", then the place in it
    if source == "body":
        path = _body_path(path, body)
    kind, context = error["type"], {k: _without_point_zero(v) for k, v in error.get("ctx", {}).items()}
    if kind == "json_invalid":  # here the path is an offset in characters
        return FieldError(f"the body is not valid JSON: {context['error']}", field=source, expected="JSON")
    if kind in _UNION_ERRORS:
        path.append(context["discriminator"].strip("'"))
    field = ".".join(map(str, path)) or str(source)
    if kind == "value_error":  # raised by our validators, as "not <what is expected>"
        message = str(context["error"])
        return FieldError(message, field=field, expected=message.removeprefix("not "))
    if kind == "extra_forbidden" and source == "query":
        return FieldError("no such parameter; leave it out", field=field, expected="no such parameter")
    if (expected := _EXPECTED_KIND.get(kind)) is not None:
        return FieldError(f"not {expected}; send {expected}", field=field, expected=expected)
    if kind not in _OTHER_ERRORS:
        return FieldError(error["msg"], field=field)
    fault, expected_template, fix = _OTHER_ERRORS[kind]
    expected = expected_template.format(**context)
    described = _PATTERN_DESCRIPTIONS.get(expected, expected)
    return FieldError(f"{fault}; {fix.format(described)}", field=field, expected=expected)


def _body_path(path: list[Any], body: Any) -> list[Any]:
    """Remove from `path` the tags of tagged unions, which pydantic adds: they are not fields of the body."""
    fields, value = [], body
    for part in path:
        if isinstance(value, dict) and part not in value and part == value.get("kind"):
            continue
        fields.append(part)
        value = value.get(part) if isinstance(value, dict) else None
    return fields


def _without_point_zero(value: Any) -> Any:
    """Convert 1.0 to 1: the bounds of float fields are shown in messages."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
