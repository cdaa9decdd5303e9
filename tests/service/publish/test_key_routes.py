"""Keys over HTTP, and that their secrets are not stored anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.server import Server
from tests.service.api import Api, check_problem

pytestmark = pytest.mark.anyio


async def test_a_key_is_shown_once_and_listed_without_its_secret(api: Api):
    body = {"name": "scorer", "scopes": ["predict"], "models": ["flag"], "expires_in": 3600}
    answer = await api.client.post("/v1/keys", json=body)
    assert answer.status_code == 201
    created = answer.json()
    assert answer.headers["location"] == f"/v1/keys/{created['id']}"
    assert created["key"].startswith(f"trv_{created['id']}_")
    assert (created["scopes"], created["models"]) == (["predict"], ["flag"])
    assert created["expires_at"] > created["created_at"]
    listed = (await api.client.get("/v1/keys", params={"page_size": 1000})).json()["items"]
    record = next(k for k in listed if k["id"] == created["id"])
    assert record == {k: v for k, v in created.items() if k != "key"}


@pytest.mark.parametrize(
    "change",
    [
        {"scopes": []},
        {"scopes": ["root"]},
        {"scopes": "predict"},
        {"name": ""},
        {"name": "x" * 101},
        {"models": ["UPPER"]},
        {"expires_in": 0},
        {"expires_in": -1},
        {"expires_in": "5"},
        {"expires_in": 1e300},
        {"secret": "mine"},
        {"key": "trv_a_b"},
    ],
    ids=str,
)
async def test_an_invalid_key_request_is_rejected(api: Api, change: dict[str, object]):
    body: dict[str, object] = {"name": "a", "scopes": ["predict"]}
    assert check_problem(await api.client.post("/v1/keys", json=body | change), 422)["errors"]


async def test_a_repeated_request_gets_the_same_secret_whatever_the_case_of_the_scheme(api: Api) -> None:
    body, headers = {"name": "a", "scopes": ["predict"]}, {"Idempotency-Key": "case"}
    first = await api.client.post("/v1/keys", json=body, headers=headers)
    for scheme in ("bearer ", "BEARER  "):
        headers["Authorization"] = scheme + api.admin
        again = await api.client.post("/v1/keys", json=body, headers=headers)
        assert (again.status_code, again.json()) == (201, first.json())


@pytest.mark.parametrize("rotated", ["sender", "created"])
async def test_a_repeated_request_never_gets_a_secret_that_does_not_work(api: Api, rotated: str) -> None:
    body, headers = {"name": "a", "scopes": ["predict"]}, {"Idempotency-Key": f"rotated {rotated}"}
    sender = await api.key("admin")
    sender_id = sender.split("_")[1]
    async with api.with_key(sender) as client:
        created = (await client.post("/v1/keys", json=body, headers=headers)).json()
    rotated_id = sender_id if rotated == "sender" else created["id"]
    replacement = (await api.client.post(f"/v1/keys/{rotated_id}/rotate")).json()["key"]
    async with api.with_key(replacement if rotated == "sender" else sender) as client:
        problem = check_problem(await client.post("/v1/keys", json=body, headers=headers), 409)
    assert "rotate it for a new secret" in problem["detail"]
    assert created["id"] in problem["detail"]


async def test_an_unknown_key_is_404(api: Api):
    check_problem(await api.client.delete("/v1/keys/missing"), 404)
    check_problem(await api.client.post("/v1/keys/missing/rotate"), 404)


def test_secrets_are_neither_in_the_data_directory_nor_in_the_log(server: Server):
    with server.client() as client:
        headers = {"Idempotency-Key": "seven"}
        body = {"name": "a", "scopes": ["predict"]}
        created = [
            client.post("/v1/keys", json=body).json(),
            client.post("/v1/keys", json=body, headers=headers).json(),
        ]
        created.append(client.post(f"/v1/keys/{created[0]['id']}/rotate").json())
        for key in created:
            with server.client(key["key"]) as key_client:
                key_client.get("/v1/models")
                key_client.get("/v1/nothing", headers={"X-Request-ID": "x"})
    files = [p for p in server.home.rglob("*") if p.is_file() and p.name != "admin.key"]
    assert any(p.name == "registry.db" for p in files)
    for secret in [server.key, *(key["key"] for key in created)]:
        random_part = secret.split("_", 2)[2].encode()
        assert [p for p in [*files, server.log] if random_part in p.read_bytes()] == []
    assert b'"/v1/nothing"' in server.log.read_bytes()


def test_the_admin_key_file_is_readable_only_by_its_owner(server: Server):
    file = Path(server.home / "admin.key")
    assert file.stat().st_mode & 0o777 == 0o600
