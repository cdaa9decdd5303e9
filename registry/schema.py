"""A signature as JSON Schema (2020-12): what one instance and one prediction look like.

Pure functions for the docs page and for whoever generates clients. They describe what
`service/runtime/codec` takes and answers; they validate nothing themselves.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from registry.signature import SAFE, Input, Output, Scalar, Signature, most

Schema = dict[str, Any]

_JSON_TYPE = {
    "float64": "number",
    "float32": "number",
    "int64": "integer",
    "bool": "boolean",
    "string": "string",
}
_FLOAT32_MAX = 3.4028234663852886e38
_RANGE: dict[str, Schema] = {  # what the dtype itself can hold; JSON has no bounds of its own
    "int64": {"format": "int64", "minimum": -(2**63), "maximum": 2**63 - 1},
    "float32": {"format": "float", "minimum": -_FLOAT32_MAX, "maximum": _FLOAT32_MAX},
}
_ZERO: dict[str, Scalar] = {"float64": 0.0, "float32": 0.0, "int64": 0, "bool": False, "string": ""}


def instance_schema(signature: Signature) -> Schema:
    """The schema of one instance: every feature required, nothing else allowed."""
    in_matrix = signature.numeric
    return _object({i.name: _feature(i, most(i, in_matrix)) for i in signature.inputs})


def instance_example(signature: Signature) -> dict[str, Scalar | None]:
    """One instance that `instance_schema` accepts, made of the published example where there is one."""
    return {i.name: _example(i) for i in signature.inputs}


def prediction_schema(signature: Signature) -> Schema:
    """The schema of one prediction, by the signature's task.

    Numbers may be null: a model may answer NaN or infinity, which JSON cannot write.
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
            known: Schema = {"label": {"enum": [1, -1], "description": "1 is an inlier, -1 an outlier"}}
            return _object(known | ({"score": _number()} if "score" in outputs else {}))
        case "transform":
            return _object({"vector": _vector(outputs["vector"])})


def class_key(value: Scalar) -> str:
    """A class label as the key of `probabilities`: text as it is, anything else as JSON writes it."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _feature(given: Input, largest: int) -> Schema:
    kind = _JSON_TYPE[given.dtype]
    schema: Schema = {"type": [kind, "null"] if given.nullable else kind}
    schema |= _RANGE.get(given.dtype, {})
    if given.dtype == "int64" and largest == SAFE:
        schema |= {"minimum": -SAFE, "maximum": SAFE}
    if given.closed and given.categories:
        schema["enum"] = [*given.categories, *([None] if given.nullable else [])]
    if description := _description(given):
        schema["description"] = description
    return schema


def _description(given: Input) -> str:
    """What was seen in the example. It refuses nothing, so it is prose and not `minimum` or `enum`."""
    parts = []
    if given.minimum is not None and given.maximum is not None:
        parts.append(f"seen from {given.minimum:g} to {given.maximum:g}")
    if given.categories and not given.closed:
        parts.append("seen: " + ", ".join(class_key(c) for c in given.categories))
    if given.nullable:
        parts.append("null where it is missing")
    return "; ".join(parts)


def _example(given: Input) -> Scalar | None:
    if given.example is not None and (finite := _finite(given.example)) is not None:
        return finite
    if given.categories:
        return given.categories[0]
    if given.minimum is not None and given.dtype != "string":
        return bool(given.minimum) if given.dtype == "bool" else _as(given.dtype, given.minimum)
    return _ZERO[given.dtype]


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


def _number(**more: object) -> Schema:
    return {"type": ["number", "null"], **more}


def _classification(outputs: dict[str, Output]) -> Schema:
    if "label" in outputs:
        return _labelled(outputs["label"], outputs.get("probabilities"))
    targets = [name.removesuffix(".label") for name in outputs if name.endswith(".label")]
    return _object({t: _labelled(outputs[f"{t}.label"], outputs.get(f"{t}.probabilities")) for t in targets})


def _labelled(label: Output, probabilities: Output | None) -> Schema:
    shown: Schema = {"type": _JSON_TYPE[label.dtype]}
    classes = label.classes or (probabilities.classes if probabilities else None)
    if classes:
        shown["enum"] = list(classes)
    properties = {"label": shown}
    if probabilities is not None:
        properties["probabilities"] = _probabilities(probabilities.classes or classes or ())
    return _object(properties)


def _probabilities(classes: tuple[Scalar, ...]) -> Schema:
    # One float rounding above 1 is an honest answer of some estimators, so there is no `maximum`.
    return _object({class_key(c): _number(examples=[round(1 / len(classes), 3)]) for c in classes})


def _regression(outputs: dict[str, Output]) -> Schema:
    if "values" not in outputs:
        return _object({"value": _number()})
    many = outputs["values"]
    targets = many.classes or range(many.shape[1])
    return _object({"values": _object({class_key(t): _number() for t in targets})})


def _vector(vector: Output) -> Schema:
    width = math.prod(vector.shape[1:])
    kind = _JSON_TYPE[vector.dtype]
    item: Schema = _number() if kind == "number" else {"type": [kind, "null"] if kind == "string" else kind}
    return {"type": "array", "items": item, "minItems": width, "maxItems": width}
