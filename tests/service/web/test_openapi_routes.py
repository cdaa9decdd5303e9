"""The OpenAPI documents as they are served: fresh, cheap to ask for again, for whom they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.config import Settings
from tests.service.api import Api, refused, running
from tests.service.estimators import yes_or_no

pytestmark = pytest.mark.anyio


async def test_every_model_has_a_typed_operation(api: Api):
    document = (await api.client.get("/openapi.json")).json()
    assert {"/v1/models/flag/predict", "/v1/models/mixed/predict"} <= set(document["paths"])
    instance = document["components"]["schemas"]["mixed.Instance"]
    assert list(instance["properties"]) == ["age", "city", "member", "visits"]


async def test_a_models_own_document_holds_it_alone(api: Api):
    document = (await api.client.get("/v1/models/mixed/openapi.json")).json()
    assert set(document["paths"]) == {"/v1/models/mixed/predict"}
    refused(await api.client.get("/v1/models/nobody/openapi.json"), 404)


@pytest.mark.parametrize("path", ["/openapi.json", "/v1/models/flag/openapi.json"])
async def test_a_document_that_is_known_is_not_sent_again_until_the_registry_moves(home: Path, path: str):
    async with running(Settings(home=home)) as alone:  # what others have built would move it
        first = await alone.client.get(path)
        known = {"If-None-Match": first.headers["etag"]}
        again = await alone.client.get(path, headers=known)
        assert (again.status_code, again.content) == (304, b"")
        await alone.key("predict")
        assert (await alone.client.get(path, headers=known)).status_code == 200


async def test_a_document_shows_what_was_published_a_moment_ago(api: Api):
    known = {"If-None-Match": (await api.client.get("/openapi.json")).headers["etag"]}
    await api.publish("novel", yes_or_no(), alias="champion")
    document = (await api.client.get("/openapi.json", headers=known)).json()
    assert "/v1/models/novel/predict" in document["paths"]


async def test_another_key_gets_no_304_for_a_document_that_is_not_its_own(api: Api):
    whole = await api.client.get("/openapi.json")
    async with api.with_key(await api.key("predict", models=["flag"])) as client:
        known = {"If-None-Match": (await api.client.get("/openapi.json")).headers["etag"]}
        answer = await client.get("/openapi.json", headers=known)
        assert answer.status_code == 200
        assert len(answer.content) < len(whole.content)


async def test_each_route_documents_its_refusals(api: Api):
    document = (await api.client.get("/openapi.json")).json()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if operation.get("security") == []:
                continue
            assert {"401", "403"} <= set(operation["responses"]), f"{method} {path}"
