"""The predict operations in OpenAPI: one typed by a model's signature, and two that take any model."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from registry.aliases import CHAMPION
from registry.errors import Invalid
from registry.media_types import ARROW, CSV, JSON
from registry.names import NAME_PATTERN
from registry.schema import Schema, class_key, instance_example, instance_schema
from registry.signature import Signature
from service.runtime.codec import MAX_INSTANCES, Codec
from service.runtime.codec.answer_encoder import AnswerEncoder
from service.web.problems import MEDIA_TYPE, build_problem, describe_status, problem_schemas

PREDICT_TAG = {"name": "predict", "description": "Any model, any version."}

_MARKDOWN_CHARACTERS = frozenset("\\`*_{}[]()<>#+-.!|&~^=:@/\"'$%")
_ERROR_STATUSES = (400, 401, 403, 404, 406, 409, 413, 415, 422, 503, 504)


@dataclass(frozen=True, slots=True)
class DocumentedModel:
    """What the documents show of a model: its champion, else its newest version that is ready."""

    name: str
    version: int
    signature: Signature
    runtime: str
    alias: str | None = None  # "champion", when `version` is what `/v1/models/{name}/predict` uses
    description: str = ""
    exports: str = ""  # Markdown: the files for devices of this version

    @property
    def path(self) -> str:
        segment = "" if self.alias == CHAMPION else f"/versions/{self.version}"
        return f"/v1/models/{self.name}{segment}/predict"

    @property
    def summary(self) -> str:
        alias = f"{self.alias}, " if self.alias else ""
        return f"Predict with {self.name} version {self.version} ({alias}{self.runtime})"


def predict_operation(model: DocumentedModel) -> Schema:
    """Build the operation of one model, with its own request and response types."""
    example = instance_example(model.signature)
    prediction = {"$ref": f"#/components/schemas/{model.name}.Prediction"}
    instance = {"$ref": f"#/components/schemas/{model.name}.Instance"}
    columns = ", ".join(map(_escape_markdown, _output_columns(model.signature)))
    return {
        "operationId": f"predict.{model.name}",
        "tags": [model.name],
        "summary": model.summary,
        "description": _feature_table(instance_schema(model.signature)["properties"]),
        "parameters": [TIMEOUT_REF],
        "requestBody": _request_body(instance, {"instances": [example]}, _csv_table(example)),
        "responses": {
            "200": _prediction_response(prediction, columns, _model_schema(model)),
            **_ERROR_RESPONSES,
            "422": _invalid_input_response(model),
        },
    }


def _model_schema(model: DocumentedModel) -> Schema:
    """Build the schema of a response's `model`. The version is an example only: the alias may move."""
    name: Schema = {"type": "string", "const": model.name}
    version: Schema = {"type": "integer", "minimum": 1, "examples": [model.version]}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "version"],
        "properties": {"name": name, "version": version},
    }


def _invalid_input_response(model: DocumentedModel) -> Schema:
    """Build the 422 response. Its example is the codec's error for an instance without the first feature."""
    first = Signature(model.signature.task, model.signature.inputs[:1], model.signature.outputs)
    try:
        Codec(first).decode_json(b'{"instances":[{}]}')
    except Invalid as error:
        problem = build_problem(422, str(error), model.path, "req-1", error.errors)
        return _error_response(422, msgspec.to_builtins(problem))
    raise AssertionError("the codec accepted an instance without its first feature")


def _feature_table(features: Schema) -> str:
    """Build a Markdown table of the features, which Swagger UI shows above the schemas."""
    rows = ["| field | type | notes |", "|---|---|---|"]
    for name, schema in features.items():
        json_type = schema["type"] if isinstance(schema["type"], str) else " or ".join(schema["type"])
        one_of = "one of " + ", ".join(class_key(v) for v in schema["enum"]) if "enum" in schema else ""
        notes = "; ".join(filter(None, [one_of, schema.get("description")]))
        rows.append(f"| {_escape_markdown(name)} | {json_type} | {_escape_markdown(notes)} |")
    return "\n".join(rows)


def _escape_markdown(text: str) -> str:
    """Escape `text` so that Markdown shows every character literally: names come from the publisher."""
    return "".join(f"&#{ord(c)};" if c in _MARKDOWN_CHARACTERS or ord(c) < 32 else c for c in text)


def _output_columns(signature: Signature) -> list[str]:
    """Return the columns of a CSV or Arrow response: those of the encoder's table without rows."""
    no_rows = {o.name: np.empty((0, *o.shape[1:])) for o in signature.outputs}
    return list(AnswerEncoder(signature).table(no_rows))


def _csv_table(example: dict[str, Any]) -> str:
    """Format the example as CSV with one row; null is an empty cell, booleans are as in JSON."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(example)
    writer.writerow([str(v).lower() if isinstance(v, bool) else v for v in example.values()])
    return out.getvalue()


def _request_body(
    instance: Schema, json_example: Schema | None = None, csv_example: str | None = None
) -> Schema:
    as_json: Schema = {"schema": _instances_schema(instance)}
    as_csv: Schema = {"schema": {"type": "string", "description": "One column per feature, by name."}}
    if json_example is not None:
        as_json["example"] = json_example
    if csv_example is not None:
        as_csv["example"] = csv_example
    return {
        "description": "A JSON object with a repeated key is rejected.",
        "required": True,
        "content": {JSON: as_json, CSV: as_csv, ARROW: {"schema": {"type": "string", "format": "binary"}}},
    }


def _instances_schema(instance: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["instances"],
        "properties": {
            "instances": {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_INSTANCES,
                "items": {"anyOf": [instance, {"$ref": "#/components/schemas/InstanceList"}]},
            }
        },
    }


def _prediction_response(prediction: Schema, columns: str, model_schema: Schema) -> Schema:
    table = f"One row per instance; the columns are {columns}."
    return {
        "description": "One prediction per instance, in order. For CSV and Arrow, the headers "
        "`X-Model-Name`, `X-Model-Version` and `X-Prediction-Id` contain the model and the id.",
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["predictions", "model", "id"],
                    "properties": {
                        "predictions": {"type": "array", "items": prediction},
                        "model": model_schema,
                        "id": {"type": "string", "description": "The prediction's id."},
                    },
                }
            },
            CSV: {"schema": {"type": "string", "description": table}},
            ARROW: {"schema": {"type": "string", "format": "binary", "description": table}},
        },
    }


def _error_response(status: int, example: object = None) -> Schema:
    content: Schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    if example is not None:
        content["example"] = example
    return {**describe_status(status), "content": {MEDIA_TYPE: content}}


_ERROR_RESPONSES = {str(s): {"$ref": f"#/components/responses/Predict{s}"} for s in _ERROR_STATUSES}
_NAME: Schema = {"type": "string", "pattern": NAME_PATTERN}


TIMEOUT_REF: Schema = {"$ref": "#/components/parameters/RequestTimeout"}


def _parameter(name: str, location: str, schema: Schema) -> Schema:
    return {"name": name, "in": location, "required": location == "path", "schema": schema}


def _untyped_operation(operation_id: str, summary: str, parameters: list[Schema]) -> Schema:
    prediction = {"$ref": "#/components/schemas/Prediction"}
    model = {"$ref": "#/components/schemas/PredictedBy"}
    return {
        "post": {
            "operationId": operation_id,
            "tags": [PREDICT_TAG["name"]],
            "summary": summary,
            "description": "The model's own page, `/v1/models/{name}/docs`, shows its fields.",
            "parameters": [*parameters, TIMEOUT_REF],
            "requestBody": _request_body({"$ref": "#/components/schemas/Instance"}),
            "responses": {
                "200": _prediction_response(prediction, "those of the model", model),
                **_ERROR_RESPONSES,
            },
        }
    }


PREDICT_PATHS: Schema = {
    "/v1/models/{name}/predict": _untyped_operation(
        "predict",
        "Predict with the version an alias points to",
        [
            _parameter("name", "path", _NAME),
            _parameter("alias", "query", {**_NAME, "default": CHAMPION}),
        ],
    ),
    "/v1/models/{name}/versions/{version}/predict": _untyped_operation(
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
        "description": "All of the model's features by name, and no other fields.",
        "additionalProperties": {"type": ["number", "string", "boolean", "null"]},
    },
    "InstanceList": {
        "type": "array",
        "description": "The values of all features, in the order of the model's features.",
        "items": {"type": ["number", "string", "boolean", "null"]},
    },
    "PredictedBy": {
        "type": "object",
        "description": "The model and the version that predicted.",
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
            "Depends on the model's task. Classification: `label`, `probabilities`. Regression: `value`, or "
            "`values` by target. Clustering: `cluster`. Outlier detection: `label`, `score`. "
            "Transformation: `vector`."
        ),
    },
}

COMPONENTS: Schema = {
    "schemas": _SCHEMAS,
    "responses": {f"Predict{s}": _error_response(s) for s in _ERROR_STATUSES},  # shared by all models
    "parameters": {
        "RequestTimeout": {
            "name": "X-Request-Timeout",
            "in": "header",
            "description": "The seconds in which the caller needs the answer, for example `2` or `0.25`; "
            "later it is 504. A value above the server's own limit has no effect.",
            "schema": {"type": "number", "exclusiveMinimum": 0},
        }
    },
    "securitySchemes": {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key of this server."}
    },
}
"""Components of every document. They contain no model's name or example."""
