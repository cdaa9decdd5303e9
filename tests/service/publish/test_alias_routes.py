"""Aliases over HTTP: promote, roll back, delete, and the history."""

from __future__ import annotations

import pytest

from registry import versions
from tests.service.api import Api, check_problem
from tests.service.model_rows import copy_version

pytestmark = pytest.mark.anyio


@pytest.fixture
async def model(api: Api, unique_name: str) -> str:
    """A model with versions 1 to 3, which became its champion in this order."""
    for _ in range(3):
        copy_version(api.settings.home, "flag", unique_name)
    api.services.snapshot.refresh()
    for version in (1, 2, 3):
        await api.promote(unique_name, version)
    return unique_name


def alias_url(model: str, alias: str = "champion") -> str:
    return f"/v1/models/{model}/aliases/{alias}"


async def test_promote_returns_the_new_state_of_the_alias(api: Api, model: str):
    body = {"version": 2, "reason": "a second pair of eyes", "edge_percent": 10}
    record = (await api.client.put(alias_url(model, "challenger"), json=body)).json()
    assert {"model": model, "alias": "challenger", "by": "admin", **body}.items() <= record.items()


async def test_the_history_is_paged_newest_first_and_searchable_by_time(api: Api, model: str):
    history = (await api.client.get(f"{alias_url(model)}/history")).json()["items"]
    assert [m["version"] for m in history] == [3, 2, 1]
    assert set(history[0]) >= {"version", "at", "by", "reason"}
    page = (await api.client.get(f"{alias_url(model)}/history", params={"page_size": 2})).json()
    token = page["next_page_token"]
    second_page = (await api.client.get(f"{alias_url(model)}/history", params={"page_token": token})).json()
    assert page["items"] + second_page["items"] == history
    for event in history:
        event_at_time = (
            await api.client.get(f"{alias_url(model)}/history", params={"at": event["at"]})
        ).json()
        assert event_at_time == event
    check_problem(
        await api.client.get(f"{alias_url(model)}/history", params={"at": "2001-01-01T00:00:00Z"}), 404
    )
    check_problem(await api.client.get(f"{alias_url(model, 'missing')}/history"), 404)


async def test_repeated_rollbacks_go_back_to_the_first_version(api: Api, model: str):
    answer = await api.client.post(f"{alias_url(model)}/rollback", json={"reason": "it drifts"})
    assert (answer.json()["version"], answer.json()["reason"]) == (2, "it drifts")
    assert (await api.client.post(f"{alias_url(model)}/rollback")).json()["version"] == 1
    check_problem(await api.client.post(f"{alias_url(model)}/rollback"), 409)
    check_problem(await api.client.post(f"{alias_url(model)}/rollback", json={"version": 1}), 422)
    row = {"x0": 1.0, "x1": 0.0, "x2": 0.0}
    assert (await api.predict(model, row)).json()["model"]["version"] == 1


async def test_a_deleted_alias_is_404_and_its_history_is_kept(api: Api, model: str):
    await api.promote(model, 1, "brief")
    assert (await api.client.delete(alias_url(model, "brief"))).status_code == 204
    check_problem(await api.client.delete(alias_url(model, "brief")), 404)
    check_problem(await api.client.post(f"{alias_url(model, 'brief')}/rollback"), 404)
    history = (await api.client.get(f"{alias_url(model, 'brief')}/history")).json()["items"]
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
async def test_an_invalid_promotion_is_rejected(api: Api, model: str, body: dict[str, object], status: int):
    check_problem(await api.client.put(alias_url(model), json=body), status)


async def test_an_invalid_alias_name_is_rejected(api: Api, model: str):
    for name in ("UPPER", "-x", "x" * 64, "a b"):
        answer = await api.client.put(alias_url(model, name), json={"version": 1})
        assert check_problem(answer, 422)["errors"][0]["field"] == "alias"


def archive_during_load(api: Api, monkeypatch: pytest.MonkeyPatch, model: str, number: int) -> list[int]:
    """Archive version `number` while a route loads it. The result gets the number at each load."""
    get = api.services.pool.get
    loads: list[int] = []
    with api.services.sessions() as session:
        archived_id = versions.get(session, model, number).id

    async def load(version_id: int) -> object:
        loaded = await get(version_id)
        if version_id == archived_id:  # the application loads champions at the same time
            loads.append(number)
            with api.services.sessions.begin() as session:
                versions.get(session, model, number).state = "archived"
            api.services.snapshot.refresh()
        return loaded

    monkeypatch.setattr(api.services.pool, "get", load)
    return loads


async def test_a_version_that_is_archived_while_it_is_loaded_is_not_promoted(
    api: Api, model: str, monkeypatch: pytest.MonkeyPatch
):
    await api.promote(model, 1, "loaded")
    loads = archive_during_load(api, monkeypatch, model, 2)
    url = alias_url(model, "loaded")
    problem = check_problem(await api.client.put(url, json={"version": 2}), 409)
    assert f"{model}:2 is archived" in problem["detail"]
    check_problem(await api.client.put(url, json={"version": 2}), 409)  # and is not loaded again
    assert loads == [2]
    history = (await api.client.get(f"{url}/history")).json()["items"]
    assert [move["version"] for move in history] == [1]


async def test_a_rollback_skips_a_target_that_is_archived_while_it_is_loaded(
    api: Api, model: str, monkeypatch: pytest.MonkeyPatch
):
    loads = archive_during_load(api, monkeypatch, model, 2)
    answer = await api.client.post(f"{alias_url(model)}/rollback")
    assert (answer.status_code, answer.json()["version"]) == (200, 1)
    assert loads == [2]
