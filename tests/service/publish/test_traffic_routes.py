"""The routes of an alias's traffic."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.service.api import Api, check_problem
from tests.service.model_rows import copy_version

pytestmark = pytest.mark.anyio
ROW = {"x0": 2.0, "x1": 0.0, "x2": 0.0}


@pytest.fixture
async def model(api: Api, unique_name: str) -> str:
    """A model with three equal versions, whose alias `champion` is version 1."""
    for _ in range(3):
        copy_version(api.settings.home, "flag", unique_name)
    await api.promote(unique_name, 1)
    return unique_name


def url(model: str, alias: str = "champion") -> str:
    return f"/v1/models/{model}/aliases/{alias}/traffic"


async def put(api: Api, model: str, **body: Any) -> httpx.Response:
    return await api.client.put(url(model), json=body)


async def test_the_traffic_is_stored_and_returned(api: Api, model: str) -> None:
    body = {
        "weights": {"1": 89.5, "2": 10.5},
        "sticky_header": "X-User",
        "bounds": {"error_rate": 0.02, "p99_ms": 50},
        "shadow": 3,
    }
    answer = await put(api, model, **body, reason="try it")
    assert answer.status_code == 200, answer.text
    record = answer.json()
    assert {field: record[field] for field in body} == body
    assert (record["version"], record["reason"], record["shadow_report"]) == (1, "try it", [])
    assert (await api.client.get(url(model))).json() == record
    history = (await api.client.get(f"/v1/models/{model}/aliases/champion/history")).json()["items"]
    events = [(event["action"], event["traffic"]) for event in history]
    assert events == [("traffic", body), ("promote", None)]


async def test_the_end_leaves_the_version_of_the_alias(api: Api, model: str) -> None:
    await put(api, model, weights={"1": 50, "2": 50})
    assert (await api.client.delete(url(model))).status_code == 204
    record = (await api.client.get(url(model))).json()
    assert (record["weights"], record["bounds"], record["shadow"]) == ({"1": 100}, None, None)
    assert "version 1 answers every call" in check_problem(await api.client.delete(url(model)), 404)["detail"]


async def test_faults_name_their_field(api: Api, model: str) -> None:
    faults: list[tuple[dict[str, Any], str]] = [
        ({"weights": {"1": 60, "2": 50}}, "weights"),
        ({"weights": {"1": 90, "9": 10}}, "weights.9"),
        ({"weights": {"1": 90, "champion": 10}}, "weights.champion"),
        ({"weights": {"1": "90"}}, "weights.1"),
        ({"weights": {"1": 101}}, "weights.1"),
        ({"weights": {"1": 90, "2": 10}, "bounds": {}}, "bounds"),
        ({"weights": {"1": 90, "2": 10}, "bounds": {"error_rate": 1}}, "bounds.error_rate"),
        ({"weights": {"1": 90, "2": 10}, "bounds": {"p99_ms": 0}}, "bounds.p99_ms"),
        ({"weights": {"1": 90, "2": 10}, "sticky_header": "X User"}, "sticky_header"),
        ({"shadow": 2.5}, "shadow"),
        ({"shadow": "challenger"}, "shadow"),
        ({"shadow": True}, "shadow"),
        ({"shadow": 0}, "shadow"),
        ({"shadow": "A b"}, "shadow"),
        ({"shadows": 2}, "shadows"),
    ]
    for body, field in faults:
        problem = check_problem(await put(api, model, **body), 422)
        assert [fault["field"].removesuffix(".[key]") for fault in problem["errors"]] == [field], problem


async def test_a_version_must_be_ready(api: Api, model: str) -> None:
    archived = await api.client.patch(f"/v1/models/{model}/versions/3", json={"archived": True})
    assert archived.status_code == 200
    problem = check_problem(await put(api, model, weights={"1": 90, "3": 10}), 409)
    assert f"weights.3: {model}:3 is archived" in problem["detail"]


async def test_a_version_that_answers_is_not_archived(api: Api, model: str) -> None:
    await put(api, model, weights={"1": 90, "3": 10})
    answer = await api.client.patch(f"/v1/models/{model}/versions/3", json={"archived": True})
    assert "answers 10 % of the calls of champion" in check_problem(answer, 409)["detail"]


async def test_the_scope_is_promote(api: Api, model: str) -> None:
    await put(api, model, weights={"1": 90, "2": 10})
    reader = api.with_key(await api.key("predict", "publish"))
    for call in (reader.get, reader.delete):
        check_problem(await call(url(model)), 403)
    check_problem(await reader.put(url(model), json={"weights": {"1": 100}}), 403)
    promoter = api.with_key(await api.key("promote", models=[model]))
    assert (await promoter.get(url(model))).status_code == 200
    check_problem(await promoter.get(url("flag")), 403)


async def test_only_an_existing_alias_has_traffic(api: Api, model: str) -> None:
    for answer in (
        await api.client.get(url(model, "other")),
        await api.client.put(url(model, "other"), json={"weights": {"1": 100}}),
        await api.client.delete(url(model, "other")),
        await api.client.get(url("missing")),
    ):
        check_problem(answer, 404)
