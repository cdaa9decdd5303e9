"""How errors are documented: every route names the problems it may answer with."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from service.web.problems import MEDIA_TYPE


class FieldProblem(BaseModel):
    instance: int | None
    field: str | None
    expected: str | None
    message: str


class ProblemDocument(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[FieldProblem] = []


_SCHEMA = {"$ref": "#/components/schemas/Problem"}
_MEANINGS = {
    401: "No valid API key",
    403: "The key lacks the scope, or is not for this model",
    404: "There is no such thing",
    406: "Accept-Encoding refuses every form that there is",
    409: "The registry's state forbids it",
    412: "If-Match does not name what is here now",
    413: "The body is too large",
    416: "The range begins behind the end of the file",
    422: "The input is wrong; `errors` names field and fix",
    503: "The database or a model does not answer; try again later",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: these, and what every guarded route may answer."""
    return {
        status: {"description": _MEANINGS[status], "content": {MEDIA_TYPE: {"schema": _SCHEMA}}}
        for status in sorted({401, 403, 422, 503, *statuses})
    }


def problem_schemas() -> dict[str, Any]:
    """The schemas behind `Problem`, for `components`."""
    schema = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), "Problem": schema | {"title": "Problem"}}
