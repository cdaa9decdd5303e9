"""The predict operations in OpenAPI: one typed by a model's signature, and the two that take any model."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

import msgspec

from registry.errors import Invalid
from registry.schema import Schema, class_key, instance_example, instance_schema
from registry.signature import Signature
from service.runtime.bounds import MAX_INSTANCES
from service.web.problem_documents import problem_schemas
from service.web.problems import MEDIA_TYPE, Problem, problem

_MARKS = frozenset("\\`*_{}[]()<>#+-.!|&~^=:@/\"'$%")

JSON = "application/json"
CSV = "text/csv"
ARROW = "application/vnd.apache.arrow.stream"

PREDICT_TAG = {"name": "predict", "description": "Any model, any version."}


@dataclass(frozen=True, slots=True)
class ModelDoc:
    """What the documents say about one model: its `champion`, else its newest version that is ready."""

    name: str
    version: int
    signature: Signature
    runtime: str
    alias: str | None = None  # "champion" when `version` is what `/v1/models/{name}/predict` answers with
    description: str = ""
    exports: str = ""  # Markdown: what devices can have of this version

    @property
    def path(self) -> str:
        at = "" if self.alias == "champion" else f"/versions/{self.version}"
        return f"/v1/models/{self.name}{at}/predict"

    @property
    def summary(self) -> str:
        alias = f"{self.alias}, " if self.alias else ""
        return f"Predict with {self.name} version {self.version} ({alias}{self.runtime})"


def typed(model: ModelDoc) -> Schema:
    example = instance_example(model.signature)
    prediction = {"$ref": f"#/components/schemas/{model.name}.Prediction"}
    instance = {"$ref": f"#/components/schemas/{model.name}.Instance"}
    columns = ", ".join(map(_escaped, _columns(model.signature)))
    return {
        "operationId": f"predict.{model.name}",
        "tags": [model.name],
        "summary": model.summary,
        "description": _field_table(instance_schema(model.signature)["properties"]),
        "requestBody": _body(instance, example={"instances": [example]}, table=_csv(example)),
        "responses": {
            "200": _answer(prediction, columns, _by(model)),
            **_ERRORS,
            "422": _wrong(model),
        },
    }


def _by(model: ModelDoc) -> Schema:
    """What says who answered. The version is an example: the alias moves."""
    name: Schema = {"type": "string", "const": model.name}
    version: Schema = {"type": "integer", "minimum": 1, "examples": [model.version]}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "version"],
        "properties": {"name": name, "version": version},
    }


def _wrong(model: ModelDoc) -> Schema:
    """The 422, in the codec's own words for an instance without the model's first field."""
    from service.runtime.codec import Codec  # numpy again

    first = Signature(model.signature.task, model.signature.inputs[:1], model.signature.outputs)
    try:
        Codec(first).decode_json(b'{"instances":[{}]}')
    except Invalid as error:
        shown: Problem = problem(422, str(error), model.path, "req-1", tuple(error.errors))
        return _refusal(422, msgspec.to_builtins(shown))
    raise AssertionError("an instance without its first field was taken")


def _field_table(features: Schema) -> str:
    """The features as a Markdown table, so that a reader sees them before he opens any schema."""
    rows = ["| field | type | notes |", "|---|---|---|"]
    for name, schema in features.items():
        kind = schema["type"] if isinstance(schema["type"], str) else " or ".join(schema["type"])
        one_of = "one of " + ", ".join(class_key(v) for v in schema["enum"]) if "enum" in schema else ""
        notes = "; ".join(filter(None, [one_of, schema.get("description")]))
        rows.append(f"| {_escaped(name)} | {kind} | {_escaped(notes)} |")
    return "\n".join(rows)


def _escaped(text: str) -> str:
    """`text` as Markdown that shows it letter by letter, whatever a publisher named his columns."""
    return "".join(f"&#{ord(c)};" if c in _MARKS or ord(c) < 32 else c for c in text)


def _columns(signature: Signature) -> list[str]:
    """The columns of a CSV or Arrow answer: those that the encoder itself makes of no rows."""
    import numpy as np  # not at the start of a server: numpy comes with the first model

    from service.runtime.codec.answers import Answers

    nothing = {o.name: np.empty((0, *o.shape[1:])) for o in signature.outputs}
    return list(Answers(signature).table(nothing))


def _csv(example: dict[str, Any]) -> str:
    """The example as a table of one row; null is the empty cell, booleans are as in JSON."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(example)
    writer.writerow([str(v).lower() if isinstance(v, bool) else v for v in example.values()])
    return out.getvalue()


def _body(instance: Schema, example: Schema | None = None, table: str | None = None) -> Schema:
    as_json: Schema = {"schema": _instances(instance)}
    as_csv: Schema = {"schema": {"type": "string", "description": "One column per feature, by name."}}
    if example is not None:
        as_json["example"] = example
    if table is not None:
        as_csv["example"] = table
    return {
        "description": "Of a key that stands twice in a JSON object, the last one counts.",
        "required": True,
        "content": {JSON: as_json, CSV: as_csv, ARROW: {"schema": {"type": "string", "format": "binary"}}},
    }


def _instances(instance: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["instances"],
        "properties": {
            "instances": {"type": "array", "minItems": 1, "maxItems": MAX_INSTANCES, "items": instance}
        },
    }


def _answer(prediction: Schema, columns: str, by: Schema) -> Schema:
    table = f"One row per instance; the columns are {columns}."
    return {
        "description": "One prediction per instance, in order. The headers `X-Model-Name`, `X-Model-Version` "
        "and `X-Prediction-Id` say what a table has no room for.",
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["predictions", "model", "id"],
                    "properties": {
                        "predictions": {"type": "array", "items": prediction},
                        "model": by,
                        "id": {"type": "string", "description": "The prediction's id."},
                    },
                }
            },
            CSV: {"schema": {"type": "string", "description": table}},
            ARROW: {"schema": {"type": "string", "format": "binary", "description": table}},
        },
    }


_NAME: Schema = {"type": "string", "pattern": "^[a-z0-9][a-z0-9_.-]{0,62}$"}


def _parameter(name: str, where: str, schema: Schema, **more: object) -> Schema:
    return {"name": name, "in": where, "required": where == "path", "schema": schema, **more}


_REFUSALS = {
    400: "The request cannot be read.",
    401: "There is no key, or it is not known, revoked or expired.",
    403: "The key may not predict with this model.",
    404: "There is no such model, version or alias.",
    406: "None of the media types that `Accept` names can be answered.",
    409: "The version is not ready.",
    413: "The body is above the bound.",
    415: "The body's media type is none of those that are taken.",
    422: "The input is wrong; `errors` names instance, field and what was expected.",
    503: "The model cannot answer now.",
    504: "The model did not answer within its deadline.",
}


def _refusal(status: int, example: object = None) -> Schema:
    content: Schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    shown = {} if example is None else {"example": example}
    return {"description": _REFUSALS[status], "content": {MEDIA_TYPE: content | shown}}


_ERRORS = {str(status): {"$ref": f"#/components/responses/Predict{status}"} for status in _REFUSALS}


def _generic(operation: str, summary: str, parameters: list[Schema]) -> Schema:
    return {
        "post": {
            "operationId": operation,
            "tags": [PREDICT_TAG["name"]],
            "summary": summary,
            "description": "The model's own page, `/v1/models/{name}/docs`, shows its fields.",
            "parameters": parameters,
            "requestBody": _body({"$ref": "#/components/schemas/Instance"}),
            "responses": {
                "200": _answer(
                    {"$ref": "#/components/schemas/Prediction"},
                    "those of its model",
                    {"$ref": "#/components/schemas/PredictedBy"},
                ),
                **_ERRORS,
            },
        }
    }


PREDICT_PATHS: Schema = {
    "/v1/models/{name}/predict": _generic(
        "predict",
        "Predict with the version an alias points to",
        [
            _parameter("name", "path", _NAME),
            _parameter("alias", "query", {**_NAME, "default": "champion"}),
        ],
    ),
    "/v1/models/{name}/versions/{version}/predict": _generic(
        "predict_version",
        "Predict with one version",
        [
            _parameter("name", "path", _NAME),
            _parameter("version", "path", {"type": "integer", "minimum": 1}),
        ],
    ),
}

_SCHEMAS: Schema = {
    **problem_schemas(),
    "Instance": {
        "type": "object",
        "description": "The model's features by name; all of them, and nothing else.",
        "additionalProperties": {"type": ["number", "string", "boolean", "null"]},
    },
    "PredictedBy": {
        "type": "object",
        "description": "The model and the version that answered.",
        "additionalProperties": False,
        "required": ["name", "version"],
        "properties": {
            "name": {"type": "string"},
            "version": {"type": "integer", "minimum": 1},
        },
    },
    "Prediction": {
        "type": "object",
        "description": (
            "By the model's task. Classification: `label`, `probabilities`. Regression: `value`, or `values` "
            "by target. Clustering: `cluster`. Outlier detection: `label`, `score`. Transformation: `vector`."
        ),
    },
}

COMPONENTS: Schema = {
    "schemas": _SCHEMAS,
    "responses": {f"Predict{status}": _refusal(status) for status in _REFUSALS},  # once for all models
    "securitySchemes": {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key of this server."}
    },
}
