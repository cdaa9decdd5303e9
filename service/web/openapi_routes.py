"""Routes of the OpenAPI documents: `/openapi.json` for the server, and one for each model."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Request, Response

from registry import catalog, db
from registry.keys import Key
from registry.signature import Signature
from service.runtime.snapshot import SnapshotState
from service.web.conditional import precondition_response
from service.web.deps import CallerDep, ServicesDep, require_scope
from service.web.openapi_document import MAX_TYPED, model_document, server_document
from service.web.openapi_predict import DocumentedModel
from service.web.problems import problem_responses, problem_schemas
from service.web.request_models import ModelName
from service.web.services import Services

router = APIRouter(tags=["docs"])
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"schema": {"type": "object"}}}},
    304: {"description": "The client's copy is current"},
}


@router.get(
    "/openapi.json",
    dependencies=[require_scope("any")],
    response_class=Response,
    responses=_RESPONSES | problem_responses(),
)
def get_server_document(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Return the OpenAPI document, with a typed predict operation for each model the key has access to."""
    return _document_response(request, services, caller, None)


@router.get(
    "/v1/models/{name}/openapi.json",
    dependencies=[require_scope("any")],
    response_class=Response,
    responses=_RESPONSES | problem_responses(404, 422),
)
def get_model_document(
    name: ModelName, request: Request, services: ServicesDep, caller: CallerDep
) -> Response:
    """Return one model's OpenAPI document."""
    return _document_response(request, services, caller, name)


def _document_response(request: Request, services: Services, caller: Key, name: str | None) -> Response:
    headers = {
        "ETag": _etag(request.app.version, services.snapshot.state, caller),
        "Cache-Control": "no-cache",
        "Vary": "Authorization",
    }
    exists = name is None or name in services.snapshot.state.models
    if exists and (not_modified := precondition_response(request.scope, headers)) is not None:
        return not_modified
    models = _read_models(services, caller, name)
    base = base_document(request.app)
    document = server_document(base, models) if name is None else model_document(base, models[0])
    return Response(msgspec.json.encode(document), media_type="application/json", headers=headers)


def _etag(product_version: str, state: SnapshotState, caller: Key) -> str:
    """Derive the entity tag from everything that a document depends on.

    That is the code (by the product's version), the registry, its revision, and the models that the caller
    has access to: a key limited to some models has a document of its own.
    """
    key_id = f"-{caller.id}" if caller.models is not None else ""
    return f'"{product_version}-{state.registry_id}-{state.revision}{key_id}"'


def _read_models(services: Services, caller: Key, name: str | None) -> list[DocumentedModel]:
    """Read the model `name`, or all, as far as the caller has access. Raises `NotFound`."""
    with db.reading(services.sessions) as session:
        entries = [e for e in catalog.entries(session, name) if caller.reaches(e.name)]
        typed = entries if len(entries) <= MAX_TYPED else []  # a longer document only lists the models
        exported = catalog.export_summaries(session, [(e.name, e.version) for e in typed])
    return [
        _documented_model(entry, [x for x in exported if (x.model, x.version) == (entry.name, entry.version)])
        for entry in entries
    ]


def base_document(app: FastAPI) -> dict[str, Any]:
    """Return FastAPI's document, with our problem documents instead of its own validation errors."""
    if app.openapi_schema is None:
        document = app.openapi()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        schemas.update(problem_schemas())
    assert app.openapi_schema is not None
    return app.openapi_schema


def _documented_model(entry: catalog.CatalogEntry, exported: list[catalog.ExportSummary]) -> DocumentedModel:
    return DocumentedModel(
        name=entry.name,
        version=entry.version,
        signature=Signature.from_json(entry.signature),
        runtime=entry.runtime,
        alias=entry.alias,
        description=entry.description,
        exports=_export_table(entry, exported) if exported else "",
    )


def _export_table(entry: catalog.CatalogEntry, exported: list[catalog.ExportSummary]) -> str:
    """Summarize the parity of each .tflite file as a Markdown table; its record has the full report."""
    lines = [
        f"Version {entry.version} as .tflite for devices (`GET /v1/edge/{entry.name}/latest.tflite`):\n",
        "| quantize | bytes | LiteRT from | label agreement | largest difference | us per row |",
        "|---|---|---|---|---|---|",
    ]
    for export in exported:
        report = export.report or {}
        cells = (
            export.quantize,
            f"{export.bytes or 0:,}",
            export.min_runtime or "",
            _format_number(report.get("label_agreement"), ".2%"),
            _format_number(report.get("largest_difference"), ".1e"),
            _format_number((report.get("latency_us") or {}).get("p50"), ".0f"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_number(value: object, spec: str) -> str:
    return format(value, spec) if isinstance(value, int | float) else ""
