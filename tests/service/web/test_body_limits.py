from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from service.config import Settings
from service.web.body_limits import BodyLimits
from service.web.request_context import RequestContext, combine_headers
from tests.service.api import Api, check_problem, running_app

pytestmark = pytest.mark.anyio
MB = 1 << 20


@pytest.fixture(scope="module")
async def small(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """Bodies up to 1 MB, artifacts up to 2 MB."""
    home = tmp_path_factory.mktemp("small") / "home"
    async with running_app(Settings(home=home, max_body_mb=1, max_artifact_mb=2)) as api:
        yield api


def leftovers(api: Api) -> list[Path]:
    return list((api.settings.blobs / "incoming").iterdir())


@pytest.mark.parametrize("path", ["/v1/keys", "/v1/models/m/versions", "/v1/models/m/predict"])
async def test_a_body_with_a_too_large_content_length_is_rejected_unread(small: Api, path: str):
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(64):
            read += MB
            yield bytes(MB)

    problem = check_problem(
        await small.client.post(path, content=body(), headers={"Content-Length": str(64 * MB)}), 413
    )
    assert str(MB) in problem["detail"]
    assert read == 0


async def test_a_too_large_body_without_content_length_is_rejected_while_received(small: Api):
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(64):
            read += MB
            yield b" " * MB

    check_problem(await small.client.post("/v1/keys", content=body()), 413)
    assert read <= 3 * MB


async def test_artifacts_have_their_own_limit_and_leave_no_file(small: Api):
    fits, too_large = bytes(2 * MB), bytes(2 * MB + 1)
    answer = await small.client.put(f"/v1/artifacts/{hashlib.sha256(fits).hexdigest()}", content=fits)
    assert answer.status_code == 201

    async def body() -> AsyncIterator[bytes]:
        yield too_large[:MB]
        yield too_large[MB:]

    digest = hashlib.sha256(too_large).hexdigest()
    check_problem(await small.client.put(f"/v1/artifacts/{digest}", content=too_large), 413)
    check_problem(await small.client.put(f"/v1/artifacts/{digest}", content=body()), 413)
    assert leftovers(small) == []


async def test_a_body_without_a_key_is_not_read(small: Api):
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    check_problem(await small.anonymous.put(f"/v1/artifacts/{'0' * 64}", content=body()), 401)


async def test_an_invalid_content_length_does_not_bypass_the_limit(small: Api):
    for value in ("-1", "abc", "", "1e9", "٣", "0" * 5000 + "1"):
        headers = [
            (b"authorization", f"Bearer {small.admin}".encode()),
            (b"content-length", value.encode()),
            (b"content-type", b"application/json"),
        ]
        request = small.anonymous.build_request("POST", "/v1/keys", headers=headers, content=b" " * (MB + 1))
        check_problem(await small.anonymous.send(request), 413)


def http(method: str, path: str, content_length: bytes | None = None) -> dict[str, Any]:
    headers = [] if content_length is None else [(b"accept", b"99"), (b"content-length", content_length)]
    context = RequestContext("req-1", None, combine_headers(headers))
    return {"type": "http", "method": method, "path": path, "headers": headers, "context": context}


async def received(scope: dict[str, Any], *chunks: bytes) -> int:
    """Pass a request with these chunks through limits of 10 and 20 bytes; return the bytes received."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request"})
    total = 0

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal total
        message = await receive()
        while "body" in message:
            total += len(message["body"])
            message = await receive()

    await BodyLimits(app, 10, 20)(scope, receive, send)
    return total


ARTIFACT = "/v1/artifacts/0"


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/v1/keys", 10),
        ("/v1/models/m/predict", 10),
        ("/v1/artifacts", 10),
        (ARTIFACT, 20),
        ("/x/v1/artifacts/0", 10),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_a_body_is_accepted_up_to_the_limit(method: str, path: str, limit: int) -> None:
    assert await received(http(method, path), bytes(limit)) == limit
    assert await received(http(method, path), bytes(limit - 3), b"", bytes(3)) == limit
    assert await received(http(method, path, b"%d" % limit), bytes(limit)) == limit
    for chunks in ([bytes(limit + 1)], [bytes(limit), b"x"], [b"x"] * (limit + 1)):
        with pytest.raises(HTTPException) as caught:
            await received(http(method, path), *chunks)
        assert (caught.value.status_code, caught.value.detail) == (
            413,
            f"the request body is larger than {limit} bytes",
        )
    with pytest.raises(HTTPException) as caught:
        await received(http(method, path, b"%d" % (limit + 1)))
    assert caught.value.status_code == 413


async def test_requests_without_a_body_and_other_protocols_have_no_limit() -> None:
    for scope in (
        http("GET", "/v1/keys", b"11"),
        http("HEAD", "/v1/keys", b"11"),
        http("POST", "/") | {"type": "x"},
    ):
        assert await received(scope, bytes(30)) == 30


async def test_a_length_that_is_no_number_is_counted_while_received() -> None:
    for length in (b"", b"-1", b"1e9", b"0x10"):
        assert await received(http("POST", "/v1/keys", length), bytes(10)) == 10
        with pytest.raises(HTTPException):
            await received(http("POST", "/v1/keys", length), bytes(11))
