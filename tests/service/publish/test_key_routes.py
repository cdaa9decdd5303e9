"""Keys over HTTP, and that their secrets are nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.server import Server
from tests.service.api import Api, refused

pytestmark = pytest.mark.anyio


async def test_a_key_is_shown_once_and_listed_without_its_secret(api: Api):
    body = {"name": "scorer", "scopes": ["predict"], "models": ["flag"], "expires_in": 3600}
    answer = await api.client.post("/v1/keys", json=body)
    assert answer.status_code == 201
    made = answer.json()
    assert answer.headers["location"] == f"/v1/keys/{made['id']}"
    assert made["key"].startswith(f"trv_{made['id']}_")
    assert (made["scopes"], made["models"]) == (["predict"], ["flag"])
    assert made["expires_at"] > made["created_at"]
    listed = (await api.client.get("/v1/keys", params={"page_size": 1000})).json()["items"]
    mine = next(k for k in listed if k["id"] == made["id"])
    assert mine == {k: v for k, v in made.items() if k != "key"}


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
async def test_a_wrong_key_is_refused(api: Api, change: dict[str, object]):
    body: dict[str, object] = {"name": "a", "scopes": ["predict"]}
    assert refused(await api.client.post("/v1/keys", json=body | change), 422)["errors"]


async def test_keys_that_do_not_exist_are_404(api: Api):
    refused(await api.client.delete("/v1/keys/nobody"), 404)
    refused(await api.client.post("/v1/keys/nobody/rotate"), 404)


def test_secrets_are_neither_in_the_data_directory_nor_in_the_log(server: Server):
    with server.client() as client:
        headers = {"Idempotency-Key": "seven"}
        body = {"name": "a", "scopes": ["predict"]}
        made = [
            client.post("/v1/keys", json=body).json(),
            client.post("/v1/keys", json=body, headers=headers).json(),
        ]
        made.append(client.post(f"/v1/keys/{made[0]['id']}/rotate").json())
        for key in made:
            with server.client(key["key"]) as holder:
                holder.get("/v1/models")
                holder.get("/v1/nothing", headers={"X-Request-ID": "x"})
    kept = [p for p in server.home.rglob("*") if p.is_file() and p.name != "admin.key"]
    assert any(p.name == "registry.db" for p in kept)
    for secret in [server.key, *(key["key"] for key in made)]:
        random_part = secret.split("_", 2)[2].encode()
        assert [p for p in [*kept, server.log] if random_part in p.read_bytes()] == []
    assert b'"/v1/nothing"' in server.log.read_bytes()


def test_the_admin_key_is_for_its_owner_alone(server: Server):
    file = Path(server.home / "admin.key")
    assert file.stat().st_mode & 0o777 == 0o600
