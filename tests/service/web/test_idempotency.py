"""A POST with an Idempotency-Key takes effect once, however often and however concurrently it is sent."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from tests.service.api import Api, refused
from tests.service.estimators import yes_or_no

pytestmark = pytest.mark.anyio


async def publication(api: Api) -> dict[str, object]:
    return await api.publication(yes_or_no())


async def test_the_same_key_and_body_give_the_same_answer(api: Api):
    body = await publication(api)
    headers = {"Idempotency-Key": "publish-1"}
    first = await api.client.post("/v1/models/once/versions", json=body, headers=headers)
    await api.built(first.headers["location"])
    again = await api.client.post("/v1/models/once/versions", json=body, headers=headers)
    assert (again.status_code, again.json()) == (202, first.json())
    assert again.headers["location"] == first.headers["location"]
    assert (await api.client.get("/v1/models/once")).json()["versions"] == 1


async def test_the_same_key_with_another_body_or_path_is_422(api: Api):
    body = await publication(api)
    headers = {"Idempotency-Key": "publish-2"}
    assert (
        await api.client.post("/v1/models/once-2/versions", json=body, headers=headers)
    ).status_code == 202
    other = body | {"description": "another"}
    for path, sent in (("once-2", other), ("once-3", body)):
        answer = await api.client.post(f"/v1/models/{path}/versions", json=sent, headers=headers)
        assert refused(answer, 422)["errors"][0]["field"] == "Idempotency-Key"


async def test_another_callers_key_is_another_key(api: Api):
    body = await publication(api)
    headers = {"Idempotency-Key": "publish-3"}
    async with api.with_key(await api.key("publish")) as other:
        numbers = [
            (await c.post("/v1/models/once-4/versions", json=body, headers=headers)).json()["version"]
            for c in (api.client, other)
        ]
    assert numbers == [1, 2]


async def test_a_refused_request_may_be_corrected_under_its_key(api: Api):
    body = await publication(api)
    headers = {"Idempotency-Key": "publish-4"}
    wrong = body | {"artifact": "0" * 64}
    refused(await api.client.post("/v1/models/once-5/versions", json=wrong, headers=headers), 422)
    answer = await api.client.post("/v1/models/once-5/versions", json=body, headers=headers)
    assert answer.status_code == 202


async def test_twenty_at_once_make_one_version(api: Api):
    body = await publication(api)
    headers = {"Idempotency-Key": "publish-5"}
    answers = await asyncio.gather(
        *(api.client.post("/v1/models/once-6/versions", json=body, headers=headers) for _ in range(20))
    )
    assert {(a.status_code, a.json()["version"]) for a in answers} == {(202, 1)}
    assert (await api.client.get("/v1/models/once-6")).json()["versions"] == 1


async def test_without_a_key_each_is_its_own(api: Api):
    body = await publication(api)
    answers = await asyncio.gather(
        *(api.client.post("/v1/models/many/versions", json=body) for _ in range(10))
    )
    assert sorted(a.json()["version"] for a in answers) == list(range(1, 11))


async def test_a_key_of_ours_made_again_has_the_same_secret_which_is_kept_nowhere(api: Api):
    headers = {"Idempotency-Key": "a key"}
    body = {"name": "a", "scopes": ["predict"]}
    answers = [(await api.client.post("/v1/keys", json=body, headers=headers)).json() for _ in range(2)]
    assert answers[0] == answers[1]
    async with api.with_key(answers[0]["key"]) as client:
        assert (await client.get("/v1/models")).status_code == 200
    with sqlite3.connect(api.settings.home / "registry.db") as database:
        everything = "\n".join(database.iterdump())
    database.close()
    assert answers[0]["id"] in everything
    assert answers[0]["key"].split("_", 2)[2] not in everything
    elsewhere = {"Idempotency-Key": "another key"}
    other = (await api.client.post("/v1/keys", json=body, headers=elsewhere)).json()
    assert other["key"].split("_", 2)[2] != answers[0]["key"].split("_", 2)[2]


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_a_key_of_a_wrong_length_is_422(api: Api, key: str):
    body = {"name": "a", "scopes": ["predict"]}
    refused(await api.client.post("/v1/keys", json=body, headers={"Idempotency-Key": key}), 422)
