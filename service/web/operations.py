"""The predict operations in OpenAPI: one typed by a model's signature, and the two that take any model."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from registry.schema import Schema, class_key, instance_example, instance_schema
from registry.signature import Signature

MAX_INSTANCES = 10_000

_MARKS = frozenset("\\`*_{}[]()<>#+-.!|&~^=:@/\"'$%")

JSON = "application/json"
CSV = "text/csv"
ARROW = "application/vnd.apache.arrow.stream"
PROBLEM = "application/problem+json"

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
    columns = ", ".join(f"`{c}`" for c in flat_columns(model.signature))
    return {
        "operationId": f"predict.{model.name}",
        "tags": [model.name],
        "summary": model.summary,
        "description": _field_table(instance_schema(model.signature)["properties"]),
        "requestBody": _body(instance, example={"instances": [example]}, table=_csv([example])),
        "responses": {
            "200": _answer(prediction, name=model.name, version=model.version, columns=columns),
            **_errors(model.alias != "champion"),
        },
    }


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


def flat_columns(signature: Signature) -> list[str]:
    """The columns of a CSV or Arrow answer, in order."""
    columns: list[str] = []
    for output in signature.outputs:
        prefix, _, last = output.name.rpartition(".")
        dot = f"{prefix}." if prefix else ""
        if last == "probabilities":
            columns += [f"{dot}probability.{class_key(c)}" for c in output.classes or ()]
        elif last == "values":
            names = output.classes or [f"y{i}" for i in range(output.shape[1])]
            columns += [f"value.{name}" for name in names]
        elif last == "vector":
            columns += [f"vector.{i}" for i in range(output.shape[1])]
        else:
            columns.append(output.name)
    return columns


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _body(instance: Schema, example: Schema | None = None, table: str | None = None) -> Schema:
    as_json: Schema = {"schema": _instances(instance)}
    as_csv: Schema = {"schema": {"type": "string", "description": "One column per feature, by name."}}
    if example is not None:
        as_json["example"] = example
    if table is not None:
        as_csv["example"] = table
    return {
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


def _answer(prediction: Schema, name: str = "", version: int | None = None, columns: str = "") -> Schema:
    named: Schema = {"type": "string"} | ({"const": name} if name else {})
    numbered: Schema = {"type": "integer", "minimum": 1} | ({"examples": [version]} if version else {})
    table = f"One row per instance; the columns are {columns or 'the prediction, flattened'}."
    return {
        "description": "One prediction per instance, in order.",
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["predictions", "model", "id"],
                    "properties": {
                        "predictions": {"type": "array", "items": prediction},
                        "model": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["name", "version"],
                            "properties": {"name": named, "version": numbered},
                        },
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


def _errors(versioned: bool) -> Schema:
    """The refusals. Only a call that names its version can meet one that is not ready."""
    said = {
        "401": "There is no key, or it is not known, revoked or expired.",
        "403": "The key may not predict with this model.",
        "404": "There is no such model, version or alias.",
        **({"409": "The version is not ready."} if versioned else {}),
        "413": "The body or the number of instances is above the bound.",
        "415": "The body's media type is none of those that are taken.",
        "422": "The input is wrong; `errors` names instance, field and what was expected.",
        "503": "The model cannot answer now.",
        "504": "The model did not answer within its deadline.",
    }
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": text, "content": {PROBLEM: {"schema": schema}}}
        for status, text in said.items()
    }


def _generic(operation: str, summary: str, parameters: list[Schema], versioned: bool) -> Schema:
    return {
        "post": {
            "operationId": operation,
            "tags": [PREDICT_TAG["name"]],
            "summary": summary,
            "description": "The model's own page, `/v1/models/{name}/docs`, shows its fields.",
            "parameters": parameters,
            "requestBody": _body({"$ref": "#/components/schemas/Instance"}),
            "responses": {"200": _answer({"$ref": "#/components/schemas/Prediction"}), **_errors(versioned)},
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
        versioned=False,
    ),
    "/v1/models/{name}/versions/{version}/predict": _generic(
        "predict_version",
        "Predict with one version",
        [
            _parameter("name", "path", _NAME),
            _parameter("version", "path", {"type": "integer", "minimum": 1}),
        ],
        versioned=True,
    ),
}

GENERIC_SCHEMAS: Schema = {
    "Instance": {
        "type": "object",
        "description": "The model's features by name; all of them, and nothing else.",
        "additionalProperties": {"type": ["number", "string", "boolean", "null"]},
    },
    "Prediction": {
        "type": "object",
        "description": (
            "By the model's task. Classification: `label`, `probabilities`. Regression: `value`, or `values` "
            "by target. Clustering: `cluster`. Outlier detection: `label`, `score`. Transformation: `vector`."
        ),
    },
    "Problem": {
        "type": "object",
        "description": "A refusal (RFC 9457).",
        "required": ["type", "title", "status", "detail", "instance", "request_id"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "instance": {"type": "string"},
            "request_id": {"type": "string"},
            "errors": {"type": "array", "items": {"$ref": "#/components/schemas/Fault"}},
        },
    },
    "Fault": {
        "type": "object",
        "description": "One thing wrong with the input.",
        "required": ["message"],
        "properties": {
            "instance": {"type": ["integer", "null"], "description": "The index of the row."},
            "field": {"type": ["string", "null"]},
            "expected": {"type": ["string", "null"]},
            "message": {"type": "string"},
        },
    },
}
