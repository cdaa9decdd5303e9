"""The OpenAPI documents over HTTP: content, freshness, entity tags, and what each key sees."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from registry import revision
from service.config import Settings
from tests.service.api import Api, check_problem, running_app
from tests.service.estimators import sign_classifier

pytestmark = pytest.mark.anyio

DOCUMENTS = ["/openapi.json", "/v1/models/flag/openapi.json"]


@pytest.fixture(scope="module")
async def own_api(
    anyio_backend: str, published_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Api]:
    """An application for these tests: nothing else changes its registry."""
    home = Path(shutil.copytree(published_home, tmp_path_factory.mktemp("openapi") / "home"))
    async with running_app(Settings(home=home)) as api:
        yield api


async def test_every_model_has_a_typed_operation(api: Api):
    document = (await api.client.get("/openapi.json")).json()
    assert {"/v1/models/flag/predict", "/v1/models/mixed/predict"} <= set(document["paths"])
    instance = document["components"]["schemas"]["mixed.Instance"]
    assert list(instance["properties"]) == ["age", "city", "member", "visits"]


async def test_a_models_document_contains_only_that_model(api: Api):
    document = (await api.client.get("/v1/models/mixed/openapi.json")).json()
    assert set(document["paths"]) == {"/v1/models/mixed/predict"}
    check_problem(await api.client.get("/v1/models/missing/openapi.json"), 404)


async def test_a_condition_does_not_hide_that_a_model_is_unknown(api: Api):
    headers = {"If-None-Match": "*"}
    check_problem(await api.client.get("/v1/models/missing/openapi.json", headers=headers), 404)


@pytest.mark.parametrize("path", DOCUMENTS)
async def test_a_current_document_is_not_sent_again_until_the_registry_changes(own_api: Api, path: str):
    first = await own_api.client.get(path)
    condition = {"If-None-Match": first.headers["etag"]}
    second = await own_api.client.get(path, headers=condition)
    assert (second.status_code, second.content) == (304, b"")
    await own_api.key("predict")
    assert (await own_api.client.get(path, headers=condition)).status_code == 200


@pytest.mark.parametrize("path", DOCUMENTS)
@pytest.mark.parametrize("condition", ["W/{etag}", '"other", {etag}', 'W/"a,b",W/{etag}', "*"])
async def test_weak_tags_and_lists_of_tags_match(own_api: Api, path: str, condition: str):
    etag = (await own_api.client.get(path)).headers["etag"]
    headers = {"If-None-Match": condition.format(etag=etag)}
    assert (await own_api.client.get(path, headers=headers)).status_code == 304
    assert (await own_api.client.get(path, headers={"If-None-Match": 'W/"other"'})).status_code == 200


async def test_a_recovery_changes_the_entity_tag(own_api: Api):
    """After a restore from a backup, its revisions are used again for other documents."""
    condition = {"If-None-Match": (await own_api.client.get("/openapi.json")).headers["etag"]}
    with own_api.services.sessions.begin() as session:
        identifier = revision.renew_registry_id(session)
    own_api.services.snapshot.refresh()
    answer = await own_api.client.get("/openapi.json", headers=condition)
    assert (answer.status_code, identifier in answer.headers["etag"]) == (200, True)


async def test_an_upgrade_changes_the_entity_tag(own_api: Api, monkeypatch: pytest.MonkeyPatch):
    condition = {"If-None-Match": (await own_api.client.get("/openapi.json")).headers["etag"]}
    monkeypatch.setattr(own_api.fastapi, "version", "99.0.0")
    answer = await own_api.client.get("/openapi.json", headers=condition)
    assert answer.status_code == 200
    assert "99.0.0" in answer.headers["etag"]


async def test_two_registries_at_the_same_revision_have_different_entity_tags(tmp_path: Path):
    async with AsyncExitStack() as stack:
        apis = [
            await stack.enter_async_context(running_app(Settings(home=tmp_path / name)))
            for name in ("first", "second")
        ]
        assert len({api.services.snapshot.state.revision for api in apis}) == 1
        answers = [await api.client.get("/openapi.json") for api in apis]
        assert answers[0].json() == answers[1].json()
        assert answers[0].headers["etag"] != answers[1].headers["etag"]


async def test_the_entity_tag_survives_a_restart_of_the_server(home: Path):
    etags = set()
    for _ in range(2):
        async with running_app(Settings(home=home)) as api:
            answer = await api.client.get("/openapi.json", headers={"If-None-Match": "*"})
            etags.add(answer.headers["etag"])  # without the document, which takes long to generate
    assert len(etags) == 1


async def test_a_document_contains_a_model_published_a_moment_ago(api: Api):
    condition = {"If-None-Match": (await api.client.get("/openapi.json")).headers["etag"]}
    await api.publish("novel", sign_classifier(), alias="champion")
    document = (await api.client.get("/openapi.json", headers=condition)).json()
    assert "/v1/models/novel/predict" in document["paths"]


async def test_a_limited_key_gets_no_304_for_the_document_of_another_key(api: Api):
    full = await api.client.get("/openapi.json")
    async with api.with_key(await api.key("predict", models=["flag"])) as client:
        condition = {"If-None-Match": (await api.client.get("/openapi.json")).headers["etag"]}
        answer = await client.get("/openapi.json", headers=condition)
        assert answer.status_code == 200
        assert len(answer.content) < len(full.content)


async def test_each_route_documents_its_authorization_errors(api: Api):
    document = (await api.client.get("/openapi.json")).json()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if operation.get("security") == []:
                continue
            assert {"401", "403"} <= set(operation["responses"]), f"{method} {path}"


async def test_bounds_are_stated_in_the_words_of_json_schema(api: Api):
    """Not in pydantic's, which schemas with validators in front of their bounds contain."""

    def names_of(value: Any) -> set[str]:
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return set(value if isinstance(value, dict) else ()).union(*map(names_of, children))

    document = (await api.client.get("/openapi.json")).json()
    names = names_of(document["paths"]) | names_of(document["components"])
    assert not names & {"ge", "le", "gt", "lt", "min_length", "max_length", "multiple_of"}
    assert {"minimum", "maximum", "maxLength"} <= names
