"""`/openapi.json` and each model's own: as fresh as the registry, cheap to ask for again."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, FastAPI, Path, Request, Response

from registry import catalog, db
from registry.keys import Key
from registry.names import NAME_PATTERN
from registry.signature import Signature
from service.web.deps import CallerDep, ServicesDep, guarded
from service.web.openapi import MAX_TYPED, merge, model_document
from service.web.operations import ModelDoc
from service.web.problem_documents import problem_schemas, problems
from service.web.services import Services

router = APIRouter(tags=["docs"])
_DOCUMENT: dict[str, Any] = {
    "response_class": Response,
    "responses": {
        200: {"content": {"application/json": {"schema": {"type": "object"}}}},
        304: {"description": "It has not changed"},
    },
}


@router.get(
    "/openapi.json",
    dependencies=[guarded("any")],
    response_class=Response,
    responses=_DOCUMENT["responses"] | problems(),
)
def whole_document(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """The OpenAPI document, with a typed predict operation for each model that the key reaches."""
    return _answer(request, services, caller, None)


@router.get(
    "/v1/models/{name}/openapi.json",
    dependencies=[guarded("any")],
    response_class=Response,
    responses=_DOCUMENT["responses"] | problems(404, 422),
)
def one_models_document(
    name: Annotated[str, Path(description="the model's name", pattern=NAME_PATTERN)],
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
) -> Response:
    """One model's OpenAPI document."""
    return _answer(request, services, caller, name)


def _answer(request: Request, services: Services, caller: Key, name: str | None) -> Response:
    sight = f"-{caller.id}" if caller.models is not None else ""  # such a key has a document of its own
    headers = {
        "ETag": f'"{services.snapshot.state.revision}{sight}"',
        "Cache-Control": "no-cache",
        "Vary": "Authorization",
    }
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    with db.reading(services.sessions) as session:
        entries = [e for e in catalog.entries(session, name) if caller.reaches(e.name)]
        shown = entries if len(entries) <= MAX_TYPED else []  # of more there is but a list
        exported = catalog.exported(session, [(e.name, e.version) for e in shown])
    models = [_doc(e, [x for x in exported if (x.model, x.version) == (e.name, e.version)]) for e in entries]
    base = base_document(request.app)
    document = merge(base, models) if name is None else model_document(base, models[0])
    return Response(msgspec.json.encode(document), media_type="application/json", headers=headers)


def base_document(app: FastAPI) -> dict[str, Any]:
    """FastAPI's own document, with our problems where it would document its own validation errors."""
    if app.openapi_schema is None:
        document = app.openapi()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        schemas.update(problem_schemas())
    assert app.openapi_schema is not None
    return app.openapi_schema


def _doc(entry: catalog.Entry, exported: list[catalog.Exported]) -> ModelDoc:
    return ModelDoc(
        name=entry.name,
        version=entry.version,
        signature=Signature.from_json(entry.signature),
        runtime=entry.runtime,
        alias=entry.alias,
        description=entry.description,
        exports=_table(entry, exported) if exported else "",
    )


def _table(entry: catalog.Entry, exported: list[catalog.Exported]) -> str:
    """How faithful each file for devices is, in short; its record has the whole report."""
    lines = [
        f"For devices, version {entry.version} as .tflite (`GET /v1/edge/{entry.name}/latest.tflite`):\n",
        "| quantize | bytes | LiteRT from | labels agree | largest difference | us a row |",
        "|---|---|---|---|---|---|",
    ]
    for export in exported:
        report = export.report or {}
        figures = (
            f"{export.bytes or 0:,}",
            export.min_runtime,
            _figure(report.get("label_agreement"), ".2%"),
            _figure(report.get("largest_difference"), ".1e"),
            _figure((report.get("latency_us") or {}).get("p50"), ".0f"),
        )
        lines.append(" | ".join(["", export.quantize, *(f or "" for f in figures), ""]).strip())
    return "\n".join(lines)


def _figure(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""
