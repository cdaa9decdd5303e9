"""The operations in OpenAPI of the Open Inference Protocol and of MLflow's scoring calls, for any model."""

from __future__ import annotations

from typing import Any

from registry.aliases import CHAMPION
from registry.media_types import CSV, JSON
from registry.names import NAME_PATTERN
from registry.schema import Schema
from service.runtime.codec import MAX_INSTANCES
from service.runtime.codec.scoring import FORMATS
from service.runtime.codec.tensors import DATATYPES
from service.web.problems import problem_responses, v2_error_responses

BINARY = "application/octet-stream"
_NAME: Schema = {
    "name": "name",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": NAME_PATTERN},
}
_VERSION: Schema = {
    "name": "version",
    "in": "path",
    "required": True,
    "schema": {"type": "integer", "minimum": 1},
}
_ALIAS: Schema = {
    "name": "alias",
    "in": "query",
    "schema": {"type": "string", "pattern": NAME_PATTERN, "default": CHAMPION},
}
_JSON_LENGTH: Schema = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "The bytes of JSON before the binary data, if there is any.",
    "schema": {"type": "integer", "minimum": 0},
}
TIMEOUT_REF: Schema = {"$ref": "#/components/parameters/RequestTimeout"}  # in openapi_predict.py
_BYTES: Schema = {"type": "string", "format": "binary"}
_TEXT: Schema = {"type": "string"}
_PARAMETERS: Schema = {"type": ["object", "null"], "additionalProperties": True}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: list[str], properties: Schema, **more: Any) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
        **more,
    }


def _operation(operation_id: str, tag: str, summary: str, version: bool, **parts: Any) -> Schema:
    which_version = _VERSION if version else _ALIAS
    parameters = [_NAME, which_version, *parts.pop("parameters", ()), TIMEOUT_REF]
    suffix = "_version" if version else ""
    which = "one version" if version else "the version an alias points to"
    return {
        "post": {
            "operationId": operation_id + suffix,
            "tags": [tag],
            "summary": f"{summary} with {which}",
            "parameters": parameters,
            **parts,
        }
    }


def _infer(version: bool) -> Schema:
    content = {JSON: {"schema": _ref("InferenceRequest")}, BINARY: {"schema": _BYTES}}
    answer = {JSON: {"schema": _ref("InferenceResponse")}, BINARY: {"schema": _BYTES}}
    return _operation(
        "infer",
        "inference protocol",
        "Predict by the Open Inference Protocol",
        version,
        description="`GET /v2/models/{name}` describes the inputs and outputs. With binary data the body is "
        "the JSON, and after it the values of the inputs that have `binary_data_size`.",
        parameters=[_JSON_LENGTH],
        requestBody={"required": True, "content": content},
        responses={
            "200": {
                "description": "One row of each output for each row of the inputs, in order.",
                "headers": {_JSON_LENGTH["name"]: {"schema": _JSON_LENGTH["schema"]}},
                "content": answer,
            },
            **_text_keys(v2_error_responses(404, 409, 413, 415, 504)),
        },
    )


def _score(version: bool) -> Schema:
    return _operation(
        "score",
        "predict",
        "Predict as MLflow's scoring server does",
        version,
        description="The body has one of "
        f"{', '.join(f'`{name}`' for name in FORMATS)}. Rows without names are in the order of the features.",
        requestBody={
            "required": True,
            "content": {JSON: {"schema": _ref("ScoringRequest")}, CSV: {"schema": _TEXT}},
        },
        responses={
            "200": {
                "description": "What the estimator's `predict` returns for each row, in order.",
                "content": {
                    JSON: {
                        "schema": _object(["predictions"], {"predictions": {"type": "array", "items": {}}})
                    }
                },
            },
            **_text_keys(problem_responses(400, 404, 409, 413, 415, 504)),
        },
    )


def _text_keys(responses: dict[int | str, dict[str, Any]]) -> Schema:
    return {str(status): response for status, response in responses.items()}


INFERENCE_PATHS: Schema = {
    "/v2/models/{name}/infer": _infer(False),
    "/v2/models/{name}/versions/{version}/infer": _infer(True),
    "/v1/models/{name}/invocations": _score(False),
    "/v1/models/{name}/versions/{version}/invocations": _score(True),
}

_DATATYPE: Schema = {"type": "string", "enum": list(DATATYPES)}
_ROWS: Schema = {"type": "array", "minItems": 1, "maxItems": MAX_INSTANCES}
_SHAPE: Schema = {
    "type": "array",
    "description": "The number of rows, and for a tensor of all features their number.",
    "minItems": 1,
    "maxItems": 2,
    "items": {"type": "integer", "minimum": 1},
}
_VALUES: Schema = {
    "type": "array",
    "description": "The values in row-major order, flat or nested as the shape; null is a missing value.",
    "items": {},
}

INFERENCE_SCHEMAS: Schema = {
    "InferenceError": _object(["error"], {"error": _TEXT}),
    "InferenceInput": _object(
        ["name", "shape", "datatype"],
        {
            "name": {
                "type": "string",
                "description": "A feature; any name for the one tensor of all features.",
            },
            "shape": _SHAPE,
            "datatype": _DATATYPE,
            "parameters": _PARAMETERS,
            "data": _VALUES,
        },
    ),
    "InferenceRequestedOutput": _object(["name"], {"name": _TEXT, "parameters": _PARAMETERS}),
    "InferenceRequest": _object(
        ["inputs"],
        {
            "id": {"type": ["string", "null"], "description": "Returned in the answer."},
            "inputs": {"type": "array", "minItems": 1, "items": _ref("InferenceInput")},
            "outputs": {"type": ["array", "null"], "items": _ref("InferenceRequestedOutput")},
            "parameters": _PARAMETERS,
            "model_name": {"type": ["string", "null"], "description": "The name in the URL."},
            "model_version": {"type": ["string", "null"], "description": "The version that answers."},
        },
        example={
            "id": "42",
            "inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP64", "data": [5.1, 3.5, 1.4, 0.2]}],
        },
    ),
    "InferenceOutput": _object(
        ["name", "datatype", "shape"],
        {
            "name": _TEXT,
            "datatype": _DATATYPE,
            "shape": {"type": "array", "items": {"type": "integer"}},
            "parameters": {"type": "object"},
            "data": _VALUES,
        },
    ),
    "InferenceResponse": _object(
        ["model_name", "model_version", "id", "outputs"],
        {
            "model_name": _TEXT,
            "model_version": _TEXT,
            "id": {"type": "string", "description": "The request's id, else the prediction's."},
            "outputs": {"type": "array", "items": _ref("InferenceOutput")},
        },
    ),
    "ScoringRequest": {
        "type": "object",
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {
            "dataframe_split": _object(
                ["data"],
                {
                    "columns": {"type": ["array", "null"], "description": "The features, in any order."},
                    "index": {"description": "Not used."},
                    "data": {**_ROWS, "items": {"type": "array"}},
                },
            ),
            "dataframe_records": {**_ROWS, "items": {"type": "object"}},
            "inputs": {
                "description": "Rows, or a list of values for each feature.",
                "anyOf": [_ROWS, {"type": "object", "additionalProperties": _ROWS}],
            },
            "instances": _ROWS,
        },
        "example": {"dataframe_split": {"columns": ["a", "b"], "data": [[1.5, 2], [2.5, 3]]}},
    },
}
