"""The OpenAPI document: FastAPI's own, with the predict operations merged in.

Predicting is raw ASGI, so FastAPI knows nothing of it, and every model has its own types. Both are
added here, to a document that FastAPI made. Pure functions: what they are given is what they describe.

A model's names start with its own and hold a dot (`fraud.Instance`, `predict.fraud`); no other name
here has one, so that no model can take another's place, whatever it is called.
"""

from __future__ import annotations

from collections.abc import Sequence

from registry.schema import Schema, instance_schema, prediction_schema
from service.web.operations import COMPONENTS, PREDICT_PATHS, PREDICT_TAG, ModelDoc, typed

MAX_TYPED = 100
"""Above this many models the document lists them; Swagger UI needs 3 s to draw 1,000 operations."""

_OPEN = ("/livez", "/readyz", "/healthz")


def merge(base: Schema, models: Sequence[ModelDoc]) -> Schema:
    """FastAPI's document `base`, with the predict operations of all `models`; `base` is left as it is.

    Above `MAX_TYPED` models there are only the parametric operations, and `x-trivium-models` lists
    `{name, version, alias, runtime, description, docs}` of each.
    """
    document = _frame(base, base["info"])
    document["paths"] = {path: _guarded(path, item) for path, item in base.get("paths", {}).items()}
    document["paths"] |= PREDICT_PATHS
    document["tags"].append(PREDICT_TAG)
    if len(models) > MAX_TYPED:
        document["x-trivium-models"] = [_listed(m) for m in models]
        about = f"{len(models)} models: each has its own page at `/v1/models/{{name}}/docs`."
        document["info"]["description"] = "\n\n".join(
            filter(None, [document["info"].get("description"), about])
        )
        return document
    for model in models:
        _add(document, model)
    # The models come first on the page: they are what a reader came for.
    named = {m.name for m in models}
    document["tags"] = [_tag(m) for m in models] + [t for t in document["tags"] if t["name"] not in named]
    return document


def model_document(base: Schema, model: ModelDoc) -> Schema:
    """One model's own document: its predict operation and nothing else."""
    info = {**base["info"], "title": model.name, "version": str(model.version)}
    info["description"] = _about(model, model.description)
    document = _frame({}, info)
    document["paths"] = {}
    _add(document, model)
    document["tags"] = [{"name": model.name}]
    return document


def _frame(base: Schema, info: Schema) -> Schema:
    theirs = base.get("components", {})
    return {
        **base,
        "openapi": "3.1.0",
        "info": dict(info),
        "tags": list(base.get("tags", ())),
        "security": [{"bearer": []}],
        "components": {**theirs, **{k: ours | theirs.get(k, {}) for k, ours in COMPONENTS.items()}},
    }


def _guarded(path: str, item: Schema) -> Schema:
    if path not in _OPEN:
        return item
    return {method: {**operation, "security": []} for method, operation in item.items()}


def _add(document: Schema, model: ModelDoc) -> None:
    document["components"]["schemas"][f"{model.name}.Instance"] = instance_schema(model.signature)
    document["components"]["schemas"][f"{model.name}.Prediction"] = prediction_schema(model.signature)
    document["paths"][model.path] = {"post": typed(model)}


def _tag(model: ModelDoc) -> Schema:
    text = model.description or f"Task: {model.signature.task}."
    return {"name": model.name, "description": _about(model, text)}


def _about(model: ModelDoc, text: str) -> str:
    return "\n\n".join(filter(None, [text, model.exports]))


def _listed(model: ModelDoc) -> Schema:
    return {
        "name": model.name,
        "version": model.version,
        "alias": model.alias,
        "runtime": model.runtime,
        "description": model.description,
        "docs": f"/v1/models/{model.name}/docs",
    }
