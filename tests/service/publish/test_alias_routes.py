"""Aliases over HTTP: promote, roll back, delete, and what was live when."""

from __future__ import annotations

import asyncio

import pytest

from tests.service.api import Api, refused
from tests.service.estimators import yes_or_no

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def moved(api: Api) -> str:
    """A model with versions 1 to 3, whose champion went 1, 2, 3."""
    await asyncio.gather(*(api.publish("moved", yes_or_no()) for _ in range(3)))
    for version in (1, 2, 3):
        await api.promote("moved", version)
    return "/v1/models/moved/aliases/champion"


async def test_a_promotion_answers_with_the_alias_as_it_is_now(api: Api, moved: str):
    body = {"version": 2, "reason": "a second pair of eyes", "edge_percent": 10}
    record = (await api.client.put("/v1/models/moved/aliases/challenger", json=body)).json()
    assert {"model": "moved", "alias": "challenger", "by": "admin", **body}.items() <= record.items()


async def test_the_history_is_newest_first_in_pages_and_answers_what_was_live_then(api: Api, moved: str):
    history = (await api.client.get(f"{moved}/history")).json()["items"]
    assert [m["version"] for m in history][-3:] == [3, 2, 1]
    assert set(history[0]) >= {"version", "at", "by", "reason"}
    page = (await api.client.get(f"{moved}/history", params={"page_size": 2})).json()
    token = page["next_page_token"]
    rest = (await api.client.get(f"{moved}/history", params={"page_token": token})).json()
    assert page["items"] + rest["items"] == history
    for event in history[-3:]:
        then = (await api.client.get(f"{moved}/history", params={"at": event["at"]})).json()
        assert then == event
    refused(await api.client.get(f"{moved}/history", params={"at": "2001-01-01T00:00:00Z"}), 404)
    refused(await api.client.get("/v1/models/moved/aliases/nobody/history"), 404)


async def test_rollbacks_walk_back_until_there_is_nothing_before(api: Api, moved: str):
    answer = await api.client.post(f"{moved}/rollback", json={"reason": "it drifts"})
    assert (answer.json()["version"], answer.json()["reason"]) == (2, "it drifts")
    assert (await api.client.post(f"{moved}/rollback")).json()["version"] == 1
    refused(await api.client.post(f"{moved}/rollback"), 409)
    refused(await api.client.post(f"{moved}/rollback", json={"version": 1}), 422)
    row = {"x0": 1.0, "x1": 0.0, "x2": 0.0}
    assert (await api.predict("moved", row)).json()["model"]["version"] == 1
    assert (await api.promote("moved", 3)).json()["version"] == 3


async def test_a_deleted_alias_is_gone_and_its_history_stays(api: Api, moved: str):
    await api.promote("moved", 1, "brief")
    assert (await api.client.delete("/v1/models/moved/aliases/brief")).status_code == 204
    refused(await api.client.delete("/v1/models/moved/aliases/brief"), 404)
    refused(await api.client.post("/v1/models/moved/aliases/brief/rollback"), 404)
    history = (await api.client.get("/v1/models/moved/aliases/brief/history")).json()["items"]
    assert [(m["version"], m["action"]) for m in history] == [(None, "delete"), (1, "promote")]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"version": 9}, 404),
        ({"version": 0}, 422),
        ({"version": "1"}, 422),
        ({"version": 1.5}, 422),
        ({"version": True}, 422),
        ({"version": 2**31}, 422),
        ({}, 422),
        ({"version": 1, "edge_percent": 101}, 422),
        ({"version": 1, "reason": "x" * 1001}, 422),
        ({"version": 1, "more": 1}, 422),
    ],
    ids=str,
)
async def test_a_wrong_promotion_is_refused(api: Api, moved: str, body: dict[str, object], status: int):
    refused(await api.client.put(moved, json=body), status)


async def test_a_name_that_is_none_is_refused(api: Api, moved: str):
    for name in ("UPPER", "-x", "x" * 64, "a b"):
        answer = await api.client.put(f"/v1/models/moved/aliases/{name}", json={"version": 1})
        assert refused(answer, 422)["errors"][0]["field"] == "alias"
