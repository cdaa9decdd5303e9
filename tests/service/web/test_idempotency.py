"""A POST with an Idempotency-Key takes effect once, also when it is repeated concurrently."""

from __future__ import annotations

import asyncio
import sqlite3
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from registry.tables import IdempotencyRow, now
from service.web.idempotency import RETENTION
from tests.service.api import Api, check_problem

pytestmark = pytest.mark.anyio


async def publication(api: Api) -> dict[str, object]:
    """The body that publishes a file that is not a model: its builds end soon."""
    return {"artifact": await api.upload(b"no model"), "format": "sklearn-joblib"}


async def test_the_same_key_and_body_give_the_same_answer(api: Api, unique_name: str):
    body = await publication(api)
    headers = {"Idempotency-Key": unique_name}
    first = await api.client.post(f"/v1/models/{unique_name}/versions", json=body, headers=headers)
    await api.wait_for_build(first.headers["location"])
    second = await api.client.post(f"/v1/models/{unique_name}/versions", json=body, headers=headers)
    assert (second.status_code, second.json()) == (202, first.json())
    assert second.headers["location"] == first.headers["location"]
    assert (await api.client.get(f"/v1/models/{unique_name}")).json()["versions"] == 1


async def test_the_same_key_with_another_body_or_path_is_422(api: Api, unique_name: str):
    body = await publication(api)
    headers = {"Idempotency-Key": unique_name}
    assert (
        await api.client.post(f"/v1/models/{unique_name}/versions", json=body, headers=headers)
    ).status_code == 202
    other = body | {"description": "another"}
    for path, request_body in ((unique_name, other), (f"{unique_name}-b", body)):
        answer = await api.client.post(f"/v1/models/{path}/versions", json=request_body, headers=headers)
        assert check_problem(answer, 422)["errors"][0]["field"] == "Idempotency-Key"


async def test_the_same_key_of_another_caller_is_independent(api: Api, unique_name: str):
    body = await publication(api)
    headers = {"Idempotency-Key": unique_name}
    async with api.with_key(await api.key("publish")) as other:
        numbers = [
            (await c.post(f"/v1/models/{unique_name}/versions", json=body, headers=headers)).json()["version"]
            for c in (api.client, other)
        ]
    assert numbers == [1, 2]


async def test_a_rejected_request_can_be_corrected_with_the_same_key(api: Api, unique_name: str):
    body = await publication(api)
    headers = {"Idempotency-Key": unique_name}
    unknown_artifact = body | {"artifact": "0" * 64}
    check_problem(
        await api.client.post(f"/v1/models/{unique_name}/versions", json=unknown_artifact, headers=headers),
        422,
    )
    answer = await api.client.post(f"/v1/models/{unique_name}/versions", json=body, headers=headers)
    assert answer.status_code == 202


async def test_twenty_concurrent_requests_create_one_version(api: Api, unique_name: str):
    body = await publication(api)
    headers = {"Idempotency-Key": unique_name}
    answers = await asyncio.gather(
        *(
            api.client.post(f"/v1/models/{unique_name}/versions", json=body, headers=headers)
            for _ in range(20)
        )
    )
    assert {(a.status_code, a.json()["version"]) for a in answers} == {(202, 1)}
    assert (await api.client.get(f"/v1/models/{unique_name}")).json()["versions"] == 1


async def test_without_a_key_each_request_creates_a_version(api: Api, unique_name: str):
    body = await publication(api)
    answers = await asyncio.gather(
        *(api.client.post(f"/v1/models/{unique_name}/versions", json=body) for _ in range(10))
    )
    assert sorted(a.json()["version"] for a in answers) == list(range(1, 11))


async def test_a_repeated_key_creation_returns_the_same_secret_which_is_not_stored(
    api: Api, unique_name: str
):
    headers = {"Idempotency-Key": unique_name}
    body = {"name": "a", "scopes": ["predict"]}
    answers = [(await api.client.post("/v1/keys", json=body, headers=headers)).json() for _ in range(2)]
    assert answers[0] == answers[1]
    async with api.with_key(answers[0]["key"]) as client:
        assert (await client.get("/v1/models")).status_code == 200
    with sqlite3.connect(api.settings.home / "registry.db") as database:
        dump = "\n".join(database.iterdump())
    database.close()
    assert answers[0]["id"] in dump
    assert answers[0]["key"].split("_", 2)[2] not in dump
    headers = {"Idempotency-Key": f"{unique_name}-b"}
    other = (await api.client.post("/v1/keys", json=body, headers=headers)).json()
    assert other["key"].split("_", 2)[2] != answers[0]["key"].split("_", 2)[2]


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_a_key_of_invalid_length_is_422(api: Api, key: str):
    body = {"name": "a", "scopes": ["predict"]}
    check_problem(await api.client.post("/v1/keys", json=body, headers={"Idempotency-Key": key}), 422)


KEY_BODY = {"name": "a", "scopes": ["predict"]}


async def create_key(api: Api, idempotency_key: str) -> str:
    """Create a key, or get the one that was created before; return its id."""
    headers = {"Idempotency-Key": idempotency_key}
    answer = await api.client.post("/v1/keys", json=KEY_BODY, headers=headers)
    assert answer.status_code == 201, answer.text
    key_id: str = answer.json()["id"]
    return key_id


def age_stored_answer(api: Api, idempotency_key: str, age: timedelta) -> None:
    with api.services.sessions.begin() as session:
        row = update(IdempotencyRow).where(IdempotencyRow.key == idempotency_key)
        session.execute(row.values(created_at=now() - age))


def stored_keys(api: Api) -> set[str]:
    with api.services.sessions() as session:
        return set(session.scalars(select(IdempotencyRow.key)))


async def test_an_answer_is_stored_for_a_day(api: Api, unique_name: str):
    first = await create_key(api, unique_name)
    age_stored_answer(api, unique_name, RETENTION - timedelta(minutes=1))
    assert await create_key(api, unique_name) == first
    age_stored_answer(api, unique_name, RETENTION + timedelta(minutes=1))
    second = await create_key(api, unique_name)
    assert second != first
    assert await create_key(api, unique_name) == second  # for another day
    assert timedelta(days=1) == RETENTION


async def test_each_idempotent_request_deletes_the_expired_answers_of_all_keys(api: Api):
    for key in ("old", "older", "young"):
        await create_key(api, key)
    age_stored_answer(api, "old", RETENTION + timedelta(seconds=1))
    age_stored_answer(api, "older", 3 * RETENTION)
    age_stored_answer(api, "young", RETENTION / 2)
    assert {"old", "older", "young"} <= stored_keys(api)
    await create_key(api, "newest")
    assert {"old", "older"}.isdisjoint(stored_keys(api))
    assert {"young", "newest"} <= stored_keys(api)
