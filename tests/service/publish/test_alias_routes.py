"""Aliases over HTTP: promote, roll back, delete, and the history."""

from __future__ import annotations

import asyncio

import pytest

from registry import versions
from tests.service.api import Api, check_problem
from tests.service.estimators import sign_classifier

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def champion_url(api: Api) -> str:
    """The champion of a model with versions 1 to 3, which were promoted in this order."""
    await asyncio.gather(*(api.publish("moved", sign_classifier()) for _ in range(3)))
    for version in (1, 2, 3):
        await api.promote("moved", version)
    return "/v1/models/moved/aliases/champion"


async def test_promote_returns_the_new_state_of_the_alias(api: Api, champion_url: str):
    body = {"version": 2, "reason": "a second pair of eyes", "edge_percent": 10}
    record = (await api.client.put("/v1/models/moved/aliases/challenger", json=body)).json()
    assert {"model": "moved", "alias": "challenger", "by": "admin", **body}.items() <= record.items()


async def test_the_history_is_paged_newest_first_and_searchable_by_time(api: Api, champion_url: str):
    history = (await api.client.get(f"{champion_url}/history")).json()["items"]
    assert [m["version"] for m in history][-3:] == [3, 2, 1]
    assert set(history[0]) >= {"version", "at", "by", "reason"}
    page = (await api.client.get(f"{champion_url}/history", params={"page_size": 2})).json()
    token = page["next_page_token"]
    second_page = (await api.client.get(f"{champion_url}/history", params={"page_token": token})).json()
    assert page["items"] + second_page["items"] == history
    for event in history[-3:]:
        event_at_time = (await api.client.get(f"{champion_url}/history", params={"at": event["at"]})).json()
        assert event_at_time == event
    check_problem(await api.client.get(f"{champion_url}/history", params={"at": "2001-01-01T00:00:00Z"}), 404)
    check_problem(await api.client.get("/v1/models/moved/aliases/missing/history"), 404)


async def test_repeated_rollbacks_go_back_to_the_first_version(api: Api, champion_url: str):
    answer = await api.client.post(f"{champion_url}/rollback", json={"reason": "it drifts"})
    assert (answer.json()["version"], answer.json()["reason"]) == (2, "it drifts")
    assert (await api.client.post(f"{champion_url}/rollback")).json()["version"] == 1
    check_problem(await api.client.post(f"{champion_url}/rollback"), 409)
    check_problem(await api.client.post(f"{champion_url}/rollback", json={"version": 1}), 422)
    row = {"x0": 1.0, "x1": 0.0, "x2": 0.0}
    assert (await api.predict("moved", row)).json()["model"]["version"] == 1
    assert (await api.promote("moved", 3)).json()["version"] == 3


async def test_a_deleted_alias_is_404_and_its_history_is_kept(api: Api, champion_url: str):
    await api.promote("moved", 1, "brief")
    assert (await api.client.delete("/v1/models/moved/aliases/brief")).status_code == 204
    check_problem(await api.client.delete("/v1/models/moved/aliases/brief"), 404)
    check_problem(await api.client.post("/v1/models/moved/aliases/brief/rollback"), 404)
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
async def test_an_invalid_promotion_is_rejected(
    api: Api, champion_url: str, body: dict[str, object], status: int
):
    check_problem(await api.client.put(champion_url, json=body), status)


async def test_an_invalid_alias_name_is_rejected(api: Api, champion_url: str):
    for name in ("UPPER", "-x", "x" * 64, "a b"):
        answer = await api.client.put(f"/v1/models/moved/aliases/{name}", json={"version": 1})
        assert check_problem(answer, 422)["errors"][0]["field"] == "alias"


def set_state(api: Api, number: int, state: str) -> None:
    with api.services.sessions.begin() as session:
        versions.get(session, "moved", number).state = state
    api.services.snapshot.refresh()


def change_during_load(api: Api, monkeypatch: pytest.MonkeyPatch, number: int, loads: list[int]) -> None:
    """Archive version `number` while the route loads a version; `loads` gets the ids of loaded versions."""
    get = api.services.pool.get

    async def load(version_id: int) -> object:
        model = await get(version_id)
        loads.append(version_id)
        set_state(api, number, "archived")
        return model

    monkeypatch.setattr(api.services.pool, "get", load)


def version_id(api: Api, number: int) -> int:
    with api.services.sessions() as session:
        return versions.get(session, "moved", number).id


async def test_a_version_that_is_archived_while_it_is_loaded_is_not_promoted(
    api: Api, champion_url: str, monkeypatch: pytest.MonkeyPatch
):
    await api.promote("moved", 1, "loaded")
    loads: list[int] = []
    change_during_load(api, monkeypatch, 2, loads)
    url = "/v1/models/moved/aliases/loaded"
    try:
        problem = check_problem(await api.client.put(url, json={"version": 2}), 409)
        assert "moved:2 is archived" in problem["detail"]
        check_problem(await api.client.put(url, json={"version": 2}), 409)  # and is not loaded again
    finally:
        set_state(api, 2, "ready")
    assert loads == [version_id(api, 2)]
    history = (await api.client.get(f"{url}/history")).json()["items"]
    assert [move["version"] for move in history] == [1]


async def test_a_rollback_skips_a_target_that_is_archived_while_it_is_loaded(
    api: Api, champion_url: str, monkeypatch: pytest.MonkeyPatch
):
    for version in (1, 2, 3):
        await api.promote("moved", version, "rolled")
    loads: list[int] = []
    change_during_load(api, monkeypatch, 2, loads)
    try:
        answer = await api.client.post("/v1/models/moved/aliases/rolled/rollback")
    finally:
        set_state(api, 2, "ready")
    assert (answer.status_code, answer.json()["version"]) == (200, 1)
    assert loads == [version_id(api, 2)]
