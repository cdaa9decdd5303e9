from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from registry.errors import Invalid
from registry.signature import Input, Signature
from service.runtime.codec import Codec
from service.web.openapi_document import MAX_TYPED, model_document, server_document
from service.web.openapi_predict import DocumentedModel
from tests.registry.signatures import SIGNATURES

COMPONENT_NAME = re.compile(r"^[a-zA-Z0-9._-]+$")


def base() -> dict[str, Any]:
    app = FastAPI(title="Trivium", version="1", description="A server.")

    @app.get("/livez", tags=["health"])
    def livez() -> None: ...

    @app.get("/v1/models", tags=["models"])
    def models(q: str | None = None) -> list[str]: ...

    return app.openapi()


def doc(name: str = "fraud", version: int = 3, **fields: Any) -> DocumentedModel:
    return DocumentedModel(name, version, **{"signature": SIGNATURES["strings"], "runtime": "onnx"} | fields)


def operation(document: dict[str, Any], path: str) -> dict[str, Any]:
    return document["paths"][path]["post"]


def check_valid(document: dict[str, Any]) -> None:
    """Check that it is valid OpenAPI 3.1 after encoding to JSON."""
    validate(msgspec.json.decode(msgspec.json.encode(document)), cls=OpenAPIV31SpecValidator)


def test_the_document_of_models_of_every_task_is_valid() -> None:
    document = server_document(base(), [doc(name, signature=s) for name, s in SIGNATURES.items()])
    assert document["openapi"].startswith("3.1.")
    check_valid(document)
    assert all(COMPONENT_NAME.match(n) for kind in document["components"].values() for n in kind)


def test_a_document_without_models_has_the_untyped_operations() -> None:
    document = server_document(base(), [])
    check_valid(document)
    assert operation(document, "/v1/models/{name}/predict")["operationId"] == "predict"
    assert operation(document, "/v1/models/{name}/versions/{version}/predict")["parameters"]
    assert "x-trivium-models" not in document


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES)
def test_a_models_document_is_valid_and_has_only_its_operation(signature: Signature) -> None:
    document = model_document(base(), doc(signature=signature, alias="champion"))
    check_valid(document)
    assert list(document["paths"]) == ["/v1/models/fraud/predict"]
    assert (document["info"]["title"], document["info"]["version"]) == ("fraud", "3")


def test_without_a_champion_the_version_is_in_the_path() -> None:
    assert list(model_document(base(), doc())["paths"]) == ["/v1/models/fraud/versions/3/predict"]


def test_the_summary_names_version_and_runtime() -> None:
    assert doc(alias="champion").summary == "Predict with fraud version 3 (champion, onnx)"
    assert doc(runtime="isolated").summary == "Predict with fraud version 3 (isolated)"


def test_the_request_is_typed_and_its_example_is_valid() -> None:
    document = server_document(base(), [doc(alias="champion")])
    content = operation(document, "/v1/models/fraud/predict")["requestBody"]["content"]
    assert list(content) == ["application/json", "text/csv", "application/vnd.apache.arrow.stream"]
    body = content["application/json"]
    schema = body["schema"] | {"components": document["components"]}
    Draft202012Validator(schema).validate(body["example"])
    instances = body["schema"]["properties"]["instances"]
    assert (instances["minItems"], instances["maxItems"]) == (1, 10_000)
    assert content["text/csv"]["example"].splitlines() == [
        'mean radius,âge.v1,"country | ""code"" <b>",plan,grade,active,ratio',
        "17.99,18,FR,free,1,true,0.0",
    ]


def test_the_response_is_typed_by_the_task() -> None:
    document = server_document(base(), [doc(alias="champion")])
    answer = operation(document, "/v1/models/fraud/predict")["responses"]["200"]["content"]
    schema = answer["application/json"]["schema"] | {"components": document["components"]}
    valid_outputs = {
        "predictions": [{"label": "benign", "probabilities": {"benign": 0.9, "malignant": 0.1}}],
        "model": {"name": "fraud", "version": 3},
        "id": "p",
    }
    Draft202012Validator(schema).validate(valid_outputs)
    assert not Draft202012Validator(schema).is_valid(valid_outputs | {"predictions": [{"label": "no class"}]})
    assert answer["text/csv"]["schema"]["description"].endswith(
        "label, probability&#46;benign, probability&#46;malignant."
    )


def test_every_error_response_is_a_problem_document() -> None:
    document = server_document(base(), [doc(alias="champion")])
    responses = operation(document, "/v1/models/fraud/predict")["responses"]
    assert {"401", "403", "404", "413", "415", "422", "503", "504"} <= responses.keys()
    for status in responses.keys() - {"200", "422"}:
        response = document["components"]["responses"][responses[status]["$ref"].rpartition("/")[2]]
        assert list(response["content"]) == ["application/problem+json"]
    problem = responses["422"]["content"]["application/problem+json"]
    schema = problem["schema"] | {"components": document["components"]}
    Draft202012Validator(schema).validate(problem["example"])


def test_the_examples_of_a_model_are_its_own() -> None:
    """Its name, version and path, and the codec's error for its first field."""
    document = server_document(base(), [doc("fraud"), doc("price", 7, signature=SIGNATURES["regression"])])
    path = "/v1/models/price/versions/7/predict"
    responses = operation(document, path)["responses"]
    by = responses["200"]["content"]["application/json"]["schema"]["properties"]["model"]["properties"]
    assert (by["name"]["const"], by["version"]["examples"]) == ("price", [7])
    example = responses["422"]["content"]["application/problem+json"]["example"]
    first = SIGNATURES["regression"].inputs[0].name
    assert example["instance"] == path
    assert example["errors"][0]["field"] == first
    with pytest.raises(Invalid) as invalid:
        Codec(SIGNATURES["regression"]).decode_json(b'{"instances": [{}]}')
    assert example["errors"][0]["message"] == invalid.value.errors[0].message
    shared = msgspec.json.encode(document["components"]["responses"]).decode()
    assert "example" not in shared
    assert "fraud" not in msgspec.json.encode(document["components"]["schemas"]["PredictedBy"]).decode()


def test_the_document_of_a_hundred_models_is_smaller_than_1_MB() -> None:
    features = tuple(Input(f"feature number {i}", "float64", minimum=0, maximum=9) for i in range(30))
    signature = Signature("regression", features, SIGNATURES["regression"].outputs)
    document = server_document(base(), [doc(f"model-{i}", signature=signature) for i in range(MAX_TYPED)])
    assert len(msgspec.json.encode(document)) < 1_000_000


def test_the_description_mentions_repeated_keys() -> None:
    document = server_document(base(), [doc(alias="champion")])
    for path in ("/v1/models/fraud/predict", "/v1/models/{name}/predict"):
        assert "a repeated key is rejected" in operation(document, path)["requestBody"]["description"]


def test_every_operation_except_the_probes_requires_a_key() -> None:
    document = server_document(base(), [doc()])
    assert document["security"] == [{"bearer": []}]
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert document["paths"]["/livez"]["get"]["security"] == []
    assert "security" not in document["paths"]["/v1/models"]["get"]


@pytest.mark.parametrize("name", ["predict", "models", "version", "instance", "a.b", "a-b", "a_b", "0"])
def test_no_models_name_collides_with_another_name(name: str) -> None:
    other_models = [doc("a"), doc("predict.a"), doc("a.instance")]
    document = server_document(base(), [*other_models, doc(name, alias="champion")])
    check_valid(document)  # this rejects duplicate operation ids
    tags = [t["name"] for t in document["tags"]]
    assert len(tags) == len(set(tags))
    assert len([c for c in document["components"]["schemas"] if c.endswith(".Instance")]) == 4


def test_field_names_are_escaped_in_markdown() -> None:
    feature = Input("<img src=x> | `a` *b* [c](d)\nÉté", "float64")
    outputs = SIGNATURES["regression"].outputs
    document = model_document(base(), doc(signature=Signature("regression", (feature,), outputs)))
    check_valid(document)
    table = operation(document, doc().path)["description"].splitlines()
    assert len(table) == 3
    assert not set(table[2].removeprefix("| ").partition(" | ")[0]) & set("<>|`*[]()\n")
    assert "Été" in table[2]


def test_with_many_models_the_document_only_lists_them() -> None:
    too_many = [doc(f"m-{i}", description="One of many.") for i in range(MAX_TYPED + 1)]
    document = server_document(base(), too_many)
    check_valid(document)
    assert len(document["x-trivium-models"]) == MAX_TYPED + 1
    assert document["x-trivium-models"][7] == {
        "name": "m-7",
        "version": 3,
        "alias": None,
        "runtime": "onnx",
        "description": "One of many.",
        "docs": "/v1/models/m-7/docs",
    }
    assert not [p for p in document["paths"] if "/m-" in p]
    assert "101 models" in document["info"]["description"]
    assert len(server_document(base(), too_many[:MAX_TYPED])["paths"]) == MAX_TYPED + 8


def test_the_base_document_is_not_changed() -> None:
    document = base()
    before = msgspec.json.encode(document)
    server_document(document, [doc()])
    server_document(document, [doc(f"m-{i}") for i in range(MAX_TYPED + 1)])
    model_document(document, doc())
    assert msgspec.json.encode(document) == before
