from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.config import Settings
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
    for value in ("-1", "abc", "", "1e9", "٣"):
        headers = [
            (b"authorization", f"Bearer {small.admin}".encode()),
            (b"content-length", value.encode()),
            (b"content-type", b"application/json"),
        ]
        request = small.anonymous.build_request("POST", "/v1/keys", headers=headers, content=b" " * (MB + 1))
        check_problem(await small.anonymous.send(request), 413)
