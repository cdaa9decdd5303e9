from __future__ import annotations

import hashlib

import pytest
from starlette.types import Message

from tests.service.api import Api, check_problem

pytestmark = pytest.mark.anyio


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def test_a_second_upload_of_the_same_file_is_200(api: Api, unique_name: str):
    content = unique_name.encode()
    first = await api.client.put(f"/v1/artifacts/{digest(content)}", content=content)
    second = await api.client.put(f"/v1/artifacts/{digest(content)}", content=content)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json() == {"sha256": digest(content), "bytes": len(content)}


async def test_an_upload_with_a_wrong_digest_is_rejected_and_not_stored(api: Api):
    claimed = digest(b"other bytes")
    problem = check_problem(await api.client.put(f"/v1/artifacts/{claimed}", content=b"these bytes"), 422)
    assert problem["errors"][0]["expected"] == digest(b"these bytes")
    for sha256 in (claimed, digest(b"these bytes")):
        body = {"artifact": sha256, "format": "onnx"}
        check_problem(await api.client.post("/v1/models/missing/versions", json=body), 422)


@pytest.mark.parametrize("name", ["x", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "..%2f..%2fregistry.db"])
async def test_an_invalid_digest_is_rejected(api: Api, name: str):
    answer = await api.client.put(f"/v1/artifacts/{name}", content=b"")
    check_problem(answer, 404 if "%2f" in name else 422)


async def test_an_empty_file_can_be_uploaded(api: Api):
    assert (await api.client.put(f"/v1/artifacts/{digest(b'')}", content=b"")).status_code in (200, 201)


async def test_a_client_that_goes_away_during_an_upload_is_no_server_error(
    api: Api, capsys: pytest.CaptureFixture[str]
):
    messages = iter(
        [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]
    )
    sent: list[Message] = []

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "PUT",
        "path": f"/v1/artifacts/{digest(b'half and more')}",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {api.admin}".encode())],
    }
    await api.app(scope, receive, send)
    assert sent[0]["status"] == 400
    assert "error" not in capsys.readouterr().out
    assert list(api.services.store.incoming.iterdir()) == []


async def test_keys_with_publish_or_batch_may_upload(api: Api, unique_name: str):
    for scope in ("publish", "batch"):
        async with api.with_key(await api.key(scope)) as client:
            content = f"{unique_name} {scope}".encode()
            answer = await client.put(f"/v1/artifacts/{digest(content)}", content=content)
            assert answer.status_code == 201


async def test_stored_bytes_are_rejected_under_the_digest_of_another_file(api: Api):
    first, second = await api.upload(b"first"), await api.upload(b"second")
    for digest, content in ((first, b"second"), (second, b"first")):
        answer = await api.client.put(f"/v1/artifacts/{digest}", content=content)
        assert check_problem(answer, 422)["errors"][0]["field"] == "sha256"
    assert (await api.client.put(f"/v1/artifacts/{first}", content=b"first")).status_code == 200
