"""JSON Schemas (2020-12) of a signature: of one instance and of one prediction.

Pure functions for the documentation page and for client generators. The schemas describe the JSON that
`service/runtime/codec` reads and writes; they are not used for validation.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from registry.signature import (
    Input,
    Output,
    Scalar,
    Signature,
    describe_bounds,
    integer_bounds,
    max_integer,
)

Schema = dict[str, Any]

_JSON_TYPE = {
    "float64": "number",
    "float32": "number",
    "int64": "integer",
    "bool": "boolean",
    "string": "string",
}
_FLOAT32_MAX = 3.4028234663852886e38
_RANGE: dict[str, Schema] = {  # the range of the dtype: JSON numbers are unbounded
    "int64": {"format": "int64"},
    "float32": {"format": "float", "minimum": -_FLOAT32_MAX, "maximum": _FLOAT32_MAX},
}
_ZERO: dict[str, Scalar] = {"float64": 0.0, "float32": 0.0, "int64": 0, "bool": False, "string": ""}


def instance_schema(signature: Signature) -> Schema:
    """Return the schema of one instance: every feature is required, other properties are not allowed."""
    in_matrix = signature.numeric
    return _object({i.name: _feature(i, in_matrix) for i in signature.inputs})


def instance_example(signature: Signature) -> dict[str, Scalar | None]:
    """Return an instance that `instance_schema` accepts, with values of the published example if possible."""
    return {i.name: _example(i) for i in signature.inputs}


def prediction_schema(signature: Signature) -> Schema:
    """Return the schema of one prediction, by the signature's task.

    Numbers may be null: a model may return NaN or infinity, which JSON cannot express.
    """
    outputs = {o.name: o for o in signature.outputs}
    match signature.task:
        case "classification":
            return _classification(outputs)
        case "regression":
            return _regression(outputs)
        case "clustering":
            return _object({"cluster": {"type": "integer"}})
        case "outlier":
            properties: Schema = {"label": {"enum": [1, -1], "description": "1 is an inlier, -1 an outlier"}}
            return _object(properties | ({"score": _number()} if "score" in outputs else {}))
        case "transform":
            return _object({"vector": _vector(outputs["vector"])})


def class_key(value: Scalar) -> str:
    """Return a class label as a key of `probabilities`: strings unchanged, other values as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _feature(feature: Input, in_matrix: bool) -> Schema:
    kind = _JSON_TYPE[feature.dtype]
    schema: Schema = {"type": [kind, "null"] if feature.nullable else kind}
    schema |= _RANGE.get(feature.dtype, {})
    if feature.dtype == "int64":
        low, high = integer_bounds(feature, max_integer(feature, in_matrix))
        schema |= {"minimum": low, "maximum": high}
    if feature.closed and feature.categories:
        schema["enum"] = [*feature.categories, *([None] if feature.nullable else [])]
    if description := _description(feature, in_matrix):
        schema["description"] = description
    return schema


def _description(feature: Input, in_matrix: bool) -> str:
    """Describe the values in the example. They are not limits, so they are not `minimum` or `enum`.

    Enforced bounds are limits, and their description is the reason for them.
    """
    parts = []
    if feature.enforced and feature.dtype == "int64":
        parts.append(describe_bounds(*integer_bounds(feature, max_integer(feature, in_matrix))))
    elif feature.minimum is not None and feature.maximum is not None:
        parts.append(f"example values from {feature.minimum:g} to {feature.maximum:g}")
    if feature.categories and not feature.closed:
        parts.append("example values: " + ", ".join(class_key(c) for c in feature.categories))
    if feature.nullable:
        parts.append("null if missing")
    return "; ".join(parts)


def _example(feature: Input) -> Scalar | None:
    if feature.example is not None and (finite := _finite(feature.example)) is not None:
        return finite
    if feature.categories:
        return feature.categories[0]
    if feature.minimum is not None and feature.dtype != "string":
        return bool(feature.minimum) if feature.dtype == "bool" else _as(feature.dtype, feature.minimum)
    return _ZERO[feature.dtype]


def _as(dtype: str, value: float) -> Scalar:
    return math.ceil(value) if dtype == "int64" else float(value)


def _finite(value: Scalar) -> Scalar | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _object(properties: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(properties),
        "properties": properties,
    }


def _number(**properties: object) -> Schema:
    return {"type": ["number", "null"], **properties}


def _classification(outputs: dict[str, Output]) -> Schema:
    if "label" in outputs:
        return _labelled(outputs["label"], outputs.get("probabilities"))
    targets = [name.removesuffix(".label") for name in outputs if name.endswith(".label")]
    return _object({t: _labelled(outputs[f"{t}.label"], outputs.get(f"{t}.probabilities")) for t in targets})


def _labelled(label: Output, probabilities: Output | None) -> Schema:
    label_schema: Schema = {"type": _JSON_TYPE[label.dtype]}
    classes = label.classes or (probabilities.classes if probabilities else None)
    if classes:
        label_schema["enum"] = list(classes)
    properties = {"label": label_schema}
    if probabilities is not None:
        properties["probabilities"] = _probabilities(probabilities.classes or classes or ())
    return _object(properties)


def _probabilities(classes: tuple[Scalar, ...]) -> Schema:
    # No `maximum`: some estimators return values that exceed 1 by a rounding error.
    return _object({class_key(c): _number(examples=[round(1 / len(classes), 3)]) for c in classes})


def _regression(outputs: dict[str, Output]) -> Schema:
    if "values" not in outputs:
        return _object({"value": _number()})
    values = outputs["values"]
    targets = values.classes or range(values.shape[1])
    return _object({"values": _object({class_key(t): _number() for t in targets})})


def _vector(vector: Output) -> Schema:
    width = math.prod(vector.shape[1:])
    kind = _JSON_TYPE[vector.dtype]
    item: Schema = _number() if kind == "number" else {"type": [kind, "null"] if kind == "string" else kind}
    return {"type": "array", "items": item, "minItems": width, "maxItems": width}
