"""Compressed request bodies."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import zlib
from collections.abc import AsyncIterator, Callable

import pytest
from starlette.types import Message

from service.config import Settings
from service.web.content_coding import DecodedBody
from tests.service.api import Api, check_problem, running_app

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.anyio
MB = 1 << 20
PREDICT = "/v1/models/flag/predict"
BODY = json.dumps({"instances": [{"x0": 2.0, "x1": 0.0, "x2": 0.0}]}).encode()


def raw_deflate(content: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(content) + compressor.flush()


def in_two_members(content: bytes) -> bytes:
    return gzip.compress(content[:7]) + gzip.compress(content[7:])


def in_two_frames(content: bytes) -> bytes:
    return zstd.compress(content[:7]) + zstd.compress(content[7:])


ENCODERS = [
    ("gzip", gzip.compress),
    ("x-gzip", in_two_members),
    ("GZIP", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("zstd", zstd.compress),
    ("zstd", in_two_frames),
    ("identity", bytes),
]


@pytest.fixture(scope="module")
async def small(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """Bodies up to 1 MB, artifacts up to 3 MB."""
    home = tmp_path_factory.mktemp("coded") / "home"
    async with running_app(Settings(home=home, max_body_mb=1, max_artifact_mb=3)) as api:
        yield api


async def byte_by_byte(content: bytes) -> AsyncIterator[bytes]:
    for index in range(len(content)):
        yield content[index : index + 1]


@pytest.mark.parametrize("content", [BODY, b""])
async def test_after_a_compressed_body_comes_what_the_server_receives(content: bytes):
    messages: list[Message] = [
        {"type": "http.request", "body": gzip.compress(content)},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    decoded = DecodedBody(receive, "gzip", MB)
    body, message = b"", await decoded()
    while message["more_body"]:
        body, message = body + message["body"], await decoded()
    assert body == content
    assert await decoded() == {"type": "http.disconnect"}


@pytest.mark.parametrize(("coding", "encode"), ENCODERS)
async def test_a_compressed_body_has_the_answer_of_the_plain_one(
    api: Api, coding: str, encode: Callable[[bytes], bytes]
):
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    plain = (
        await api.client.post(PREDICT, content=BODY, headers={"Content-Type": "application/json"})
    ).json()
    for content in (encode(BODY), byte_by_byte(encode(BODY))):
        answer = await api.client.post(PREDICT, content=content, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.json()["predictions"] == plain["predictions"]


@pytest.mark.parametrize(("coding", "encode"), ENCODERS)
async def test_an_upload_is_stored_decoded(small: Api, coding: str, encode: Callable[[bytes], bytes]):
    content = bytes(range(256)) * (3 * MB // 256)
    path = f"/v1/artifacts/{hashlib.sha256(content).hexdigest()}"
    answer = await small.client.put(path, content=encode(content), headers={"Content-Encoding": coding})
    assert answer.status_code in (200, 201), answer.text
    assert answer.json()["bytes"] == 3 * MB


async def test_a_management_body_may_be_compressed(api: Api):
    body = gzip.compress(json.dumps({"name": "compressed", "scopes": ["predict"]}).encode())
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    answer = await api.client.post("/v1/keys", content=body, headers=headers)
    assert (answer.status_code, answer.json()["name"]) == (201, "compressed")


@pytest.mark.parametrize("path", [PREDICT, "/v1/keys", f"/v1/artifacts/{'0' * 64}"])
@pytest.mark.parametrize("coding", ["br", "gzip, br", "gzip, gzip", "compress", "utf-8"])
async def test_an_unknown_coding_is_415_with_those_that_are_accepted(api: Api, path: str, coding: str):
    method = "PUT" if "artifacts" in path else "POST"
    answer = await api.client.request(method, path, content=BODY, headers={"Content-Encoding": coding})
    assert f"Content-Encoding '{coding}' is not supported" in check_problem(answer, 415)["detail"]
    assert answer.headers["accept-encoding"] == "gzip, deflate, zstd"


@pytest.mark.parametrize(("coding", "encode"), [ENCODERS[0], ENCODERS[3], ENCODERS[5]])
async def test_a_body_that_grows_beyond_the_limit_is_rejected_while_it_is_decoded(
    small: Api, coding: str, encode: Callable[[bytes], bytes]
):
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    bomb = encode(b" " * (64 * MB))
    assert len(bomb) < MB
    problem = check_problem(await small.client.post("/v1/keys", content=bomb, headers=headers), 413)
    assert problem["detail"] == f"the decoded request body is larger than {MB} bytes"
    problem = check_problem(
        await small.client.put(f"/v1/artifacts/{'0' * 64}", content=bomb, headers=headers), 413
    )
    assert problem["detail"] == f"the decoded request body is larger than {3 * MB} bytes"
    exact = encode(b" " * MB)
    check_problem(
        await small.client.post("/v1/keys", content=exact, headers=headers), 422
    )  # read, but not JSON


@pytest.mark.parametrize(("coding", "encode"), [ENCODERS[0], ENCODERS[3], ENCODERS[4], ENCODERS[5]])
@pytest.mark.parametrize("path", [PREDICT, "/v1/keys"])
async def test_a_damaged_body_is_rejected_with_its_coding(
    api: Api, path: str, coding: str, encode: Callable[[bytes], bytes]
):
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    content = encode(BODY)
    for damaged in (content[:-1], content[: len(content) // 2], content + b"x", b"\x78\x9c no", b"no"):
        answer = await api.client.post(path, content=damaged, headers=headers)
        problem = check_problem(answer, 422)
        assert problem["detail"].startswith("the body "), problem
        assert problem["detail"].endswith(f" as {coding}")
        assert problem["errors"][0]["field"] == "Content-Encoding"


async def test_a_damaged_upload_is_not_stored(small: Api):
    content = b"some bytes"
    path = f"/v1/artifacts/{hashlib.sha256(content).hexdigest()}"
    headers = {"Content-Encoding": "gzip"}
    check_problem(await small.client.put(path, content=gzip.compress(content)[:-1], headers=headers), 422)
    assert list(small.services.store.incoming.iterdir()) == []


async def test_a_request_without_a_body_may_name_a_coding(api: Api):
    answer = await api.client.get("/v1/models", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 200
    key = (await api.client.post("/v1/keys", json={"name": "a", "scopes": ["predict"]})).json()["id"]
    answer = await api.client.post(f"/v1/keys/{key}/rotate", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 200
