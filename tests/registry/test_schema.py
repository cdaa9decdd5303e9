"""Schemas and codec agree: both accept the same instances and describe the same predictions."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from jsonschema import Draft202012Validator

from registry.errors import Invalid
from registry.schema import instance_example, instance_schema, prediction_schema
from registry.signature import Input, Output, Signature
from service.runtime.codec import Codec
from tests.registry.signatures import MIXED, SIGNATURES

REGRESSION = SIGNATURES["regression"]
VALID_INSTANCE = instance_example(REGRESSION)
CHANGES: dict[str, dict[str, Any]] = {
    "unchanged": {},
    "an integer into a float": {"mean radius": 3},
    "a whole float into an integer": {"âge.v1": 3.0},
    "a fraction into an integer": {"âge.v1": 3.5},
    "null for nullable features": {"âge.v1": None, "plan": None, "grade": None},
    "null for a required feature": {"mean radius": None},
    "a string into a float": {"mean radius": "3"},
    "a boolean into a float": {"mean radius": True},
    "a number into a boolean": {"active": 1},
    "an unseen open category": {"plan": "gold"},
    "an unknown closed category": {'country | "code" <b>': "ES"},
    "an unknown closed number": {"grade": 4},
    "beyond int64": {"âge.v1": 2**63},
    "the last int64": {"âge.v1": -(2**63)},
    "beyond float32": {"ratio": 1e39},
    "an unknown field": {"unknown": 1},
}


def accepts(schema: dict[str, Any], value: object) -> bool:
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema).is_valid(value)


def decodes(signature: Signature, instance: dict[str, Any]) -> bool:
    try:
        Codec(signature).decode_json(msgspec.json.encode({"instances": [instance]}))
    except Invalid:
        return False
    return True


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_schema_accepts_exactly_the_instances_that_the_codec_accepts(change: dict[str, Any]) -> None:
    instance = VALID_INSTANCE | change
    assert accepts(instance_schema(REGRESSION), instance) == decodes(REGRESSION, instance)


@pytest.mark.parametrize("name", [i.name for i in MIXED])
def test_every_feature_is_required(name: str) -> None:
    instance = {k: v for k, v in VALID_INSTANCE.items() if k != name}
    assert not accepts(instance_schema(REGRESSION), instance)
    assert not decodes(REGRESSION, instance)


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES)
def test_the_example_is_a_valid_instance(signature: Signature) -> None:
    example = instance_example(signature)
    assert accepts(instance_schema(signature), example)
    assert decodes(signature, example)


def test_the_example_uses_published_values() -> None:
    assert instance_example(REGRESSION) == {
        "mean radius": 17.99,
        "âge.v1": 18,
        'country | "code" <b>': "FR",
        "plan": "free",
        "grade": 1,
        "active": True,
        "ratio": 0.0,
    }


def test_an_example_that_json_cannot_express_is_replaced() -> None:
    feature = Input("x", "float64", nullable=True, minimum=2.0, maximum=3.0, example=float("nan"))
    assert instance_example(Signature("regression", (feature,), REGRESSION.outputs)) == {"x": 2.0}


def test_example_values_are_described_but_are_not_limits() -> None:
    radius = instance_schema(REGRESSION)["properties"]["mean radius"]
    assert radius == {"type": "number", "description": "example values from 6.9 to 28.1"}
    assert instance_schema(REGRESSION)["properties"]["plan"]["description"].startswith(
        "example values: free, paid"
    )


def test_enforced_bounds_are_limits_with_their_reason() -> None:
    feature = Input("n", "int64", minimum=0.0, maximum=255.0, enforced=True)
    schema = instance_schema(Signature("regression", (feature,), REGRESSION.outputs))["properties"]["n"]
    assert (schema["minimum"], schema["maximum"]) == (0, 255)
    assert schema["description"] == "the model's input holds uint8: 0 to 255"


def model_output(output: Output, rows: int = 2) -> np.ndarray:
    """Return an array that a model could return, including a missing number."""
    shape = (rows, *output.shape[1:])
    if output.classes and output.name.rpartition(".")[2] == "label":
        dtype = object if output.dtype == "string" else output.dtype
        return np.array([output.classes[i % len(output.classes)] for i in range(rows)], dtype=dtype)
    if output.dtype == "string":
        return np.full(shape, "text", dtype=object)
    array = np.ones(shape, dtype=output.dtype)
    if output.dtype == "float64":
        array[-1] = np.nan
    return array


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES)
def test_every_prediction_of_the_codec_matches_its_schema(signature: Signature) -> None:
    outputs = {o.name: model_output(o) for o in signature.outputs}
    answer = msgspec.json.decode(Codec(signature).encode_json(outputs, "m", 1, "p"))
    for prediction in answer["predictions"]:
        Draft202012Validator(prediction_schema(signature)).validate(prediction)


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES)
def test_a_prediction_schema_allows_no_other_properties(signature: Signature) -> None:
    outputs = {o.name: model_output(o, rows=1) for o in signature.outputs}
    (prediction,) = msgspec.json.decode(Codec(signature).encode_json(outputs, "m", 1, "p"))["predictions"]
    assert not accepts(prediction_schema(signature), prediction | {"more": 1})
    assert not accepts(prediction_schema(signature), {})


def test_the_schema_of_500_features_keeps_their_order() -> None:
    features = tuple(Input(f"f.{i} é", "float64") for i in range(500))
    schema = instance_schema(Signature("clustering", features, SIGNATURES["clustering"].outputs))
    assert schema["required"] == list(schema["properties"]) == [f.name for f in features]
