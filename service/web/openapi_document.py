"""Assembles the OpenAPI documents: FastAPI's own document and the predict operations.

Predictions are served by raw ASGI (`online/hotpath.py`), so FastAPI's document lacks them, and each model has
its own types. These pure functions add both.

Component names and operation ids of a model contain its name and a dot (`fraud.Instance`, `predict.fraud`).
Other names in the document contain no dot, so a model's name cannot collide with them.
"""

from __future__ import annotations

from collections.abc import Sequence

from registry.schema import Schema, instance_schema, prediction_schema
from service.web.openapi_inference import INFERENCE_PATHS, INFERENCE_SCHEMAS
from service.web.openapi_predict import (
    COMPONENTS,
    PREDICT_PATHS,
    PREDICT_TAG,
    DocumentedModel,
    predict_operation,
)

MAX_TYPED = 100
"""With more models the document only lists them: Swagger UI needs 3 s to draw 1,000 operations."""

_PUBLIC = ("/livez", "/readyz", "/healthz")


def server_document(base: Schema, models: Sequence[DocumentedModel]) -> Schema:
    """Build the server's document from FastAPI's document `base`, which is not changed.

    With up to `MAX_TYPED` models each has a typed predict operation. With more, only the operations with the
    model's name as a parameter remain, and `x-trivium-models` lists
    `{name, version, alias, runtime, description, docs}` of each model.
    """
    document = _frame(base, base["info"])
    document["paths"] = {path: _with_security(path, item) for path, item in base.get("paths", {}).items()}
    document["paths"] |= PREDICT_PATHS | INFERENCE_PATHS
    document["components"]["schemas"] |= INFERENCE_SCHEMAS
    document["tags"].append(PREDICT_TAG)
    if len(models) > MAX_TYPED:
        document["x-trivium-models"] = [_list_entry(m) for m in models]
        count = f"{len(models)} models: each has its own page at `/v1/models/{{name}}/docs`."
        document["info"]["description"] = _paragraphs(document["info"].get("description"), count)
        return document
    for model in models:
        _add_model(document, model)
    # Swagger UI shows tags in this order: the models first.
    names = {m.name for m in models}
    document["tags"] = [_tag(m) for m in models] + [t for t in document["tags"] if t["name"] not in names]
    return document


def model_document(base: Schema, model: DocumentedModel) -> Schema:
    """Build the document of one model: its predict operation only."""
    info = {**base["info"], "title": model.name, "version": str(model.version)}
    info["description"] = _paragraphs(model.description, model.exports)
    document = _frame({}, info)
    document["paths"] = {}
    _add_model(document, model)
    document["tags"] = [{"name": model.name}]
    return document


def _frame(base: Schema, info: Schema) -> Schema:
    components = base.get("components", {})
    merged = {kind: entries | components.get(kind, {}) for kind, entries in COMPONENTS.items()}
    return {
        **base,
        "openapi": "3.1.0",
        "info": dict(info),
        "tags": list(base.get("tags", ())),
        "security": [{"bearer": []}],
        "components": {**components, **merged},
    }


def _with_security(path: str, item: Schema) -> Schema:
    if path not in _PUBLIC:
        return item
    return {method: {**operation, "security": []} for method, operation in item.items()}


def _add_model(document: Schema, model: DocumentedModel) -> None:
    document["components"]["schemas"][f"{model.name}.Instance"] = instance_schema(model.signature)
    document["components"]["schemas"][f"{model.name}.Prediction"] = prediction_schema(model.signature)
    document["paths"][model.path] = {"post": predict_operation(model)}


def _tag(model: DocumentedModel) -> Schema:
    description = model.description or f"Task: {model.signature.task}."
    return {"name": model.name, "description": _paragraphs(description, model.exports)}


def _paragraphs(*texts: str | None) -> str:
    return "\n\n".join(filter(None, texts))


def _list_entry(model: DocumentedModel) -> Schema:
    return {
        "name": model.name,
        "version": model.version,
        "alias": model.alias,
        "runtime": model.runtime,
        "description": model.description,
        "docs": f"/v1/models/{model.name}/docs",
    }
