"""File responses without an application: ranges, conditions, blocks and disconnects."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message

from registry.errors import NotFound
from service.web.file_response import BLOCK_BYTES, ConditionalFileResponse

pytestmark = pytest.mark.anyio

CONTENT = bytes(range(256)) * 4 * 1024 * 2 + b"the end"  # two blocks and a part of one
SIZE = len(CONTENT)
ZSTD = b"compressed"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
TAG, ZSTD_TAG = f'"{SHA256}"', f'"{SHA256}-zstd"'


class Answer(NamedTuple):
    messages: list[Message]
    quiet: bool

    @property
    def status(self) -> int:
        status: int = self.messages[0]["status"]
        return status

    @property
    def headers(self) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.messages[0]["headers"]}

    @property
    def bodies(self) -> list[bytes]:
        return [m["body"] for m in self.messages[1:]]

    @property
    def body(self) -> bytes:
        return b"".join(self.bodies)


class Files:
    """A file and its compressed form, sent in answer to requests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / SHA256).write_bytes(CONTENT)
        self.zstd = hashlib.sha256(ZSTD).hexdigest()
        (folder / self.zstd).write_bytes(ZSTD)

    async def request(
        self,
        method: str = "GET",
        *,
        compressed: bool = True,
        on_send: Callable[[Message], Any] = lambda _: None,
        disconnected: asyncio.Event | None = None,
        **headers: str,
    ) -> Answer:
        response = ConditionalFileResponse(
            lambda digest: self.folder / digest,
            SHA256,
            self.zstd if compressed else None,
            validators={"Vary": "Accept-Encoding"},
            headers={"Content-Type": "application/octet-stream"},
        )
        messages: list[Message] = []

        async def send(message: Message) -> None:
            messages.append(message)
            on_send(message)
            await asyncio.sleep(0)

        async def receive() -> Message:
            if not requested:
                requested.append(True)
                return {"type": "http.request"}
            await (disconnected or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        requested: list[bool] = []
        lines = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        context = SimpleNamespace(quiet=False)
        scope = {"type": "http", "method": method, "path": "/", "headers": lines, "context": context}
        await response(scope, receive, send)
        return Answer(messages, context.quiet)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def repr_digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


async def test_a_file_is_sent_in_blocks_with_its_headers(files: Files) -> None:
    answer = await files.request()
    assert (answer.status, answer.quiet) == (200, False)
    assert answer.headers == {
        "vary": "Accept-Encoding",
        "etag": TAG,
        "content-type": "application/octet-stream",
        "accept-ranges": "bytes",
        "content-length": str(SIZE),
        "repr-digest": repr_digest(CONTENT),
    }
    assert answer.body == CONTENT
    blocks = [BLOCK_BYTES] * (SIZE // BLOCK_BYTES)
    assert [len(body) for body in answer.bodies] == [*blocks, SIZE % BLOCK_BYTES]
    more = [m["more_body"] for m in answer.messages[1:]]
    assert more == [True] * len(blocks) + [False]


async def test_the_compressed_file_is_sent_with_its_coding(files: Files) -> None:
    answer = await files.request(accept_encoding="zstd", range="bytes=3-")
    assert (answer.status, answer.body) == (206, ZSTD[3:])
    assert answer.headers["content-encoding"] == "zstd"
    assert answer.headers["content-range"] == f"bytes 3-{len(ZSTD) - 1}/{len(ZSTD)}"
    assert (answer.headers["etag"], answer.headers["repr-digest"]) == (ZSTD_TAG, repr_digest(ZSTD))


@pytest.mark.parametrize(
    ("value", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-", 0, SIZE - 1),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE - 1),
        (f"bytes={SIZE - 1}-{SIZE}", SIZE - 1, SIZE - 1),
        (f"bytes=0-{SIZE - 2}", 0, SIZE - 2),
        (f"bytes=0-{SIZE - 1}", 0, SIZE - 1),
        (f"bytes=0-{SIZE}", 0, SIZE - 1),
        ("bytes=-1", SIZE - 1, SIZE - 1),
        (f"bytes=-{SIZE}", 0, SIZE - 1),
        (f"bytes=-{SIZE + 1}", 0, SIZE - 1),
        (f"bytes={BLOCK_BYTES - 1}-{BLOCK_BYTES}", BLOCK_BYTES - 1, BLOCK_BYTES),
        (f"bytes=1-{BLOCK_BYTES}", 1, BLOCK_BYTES),
    ],
)
async def test_a_range_is_sent_to_its_last_byte(files: Files, value: str, first: int, last: int) -> None:
    answer = await files.request(range=value)
    assert (answer.status, answer.body) == (206, CONTENT[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{SIZE}"
    assert answer.headers["content-length"] == str(last + 1 - first)
    assert answer.headers["repr-digest"] == repr_digest(CONTENT)
    assert [m["more_body"] for m in answer.messages[1:]][-1] is False


@pytest.mark.parametrize(
    "value", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE}", f"bytes={SIZE + 1}-", "bytes=-0"]
)
async def test_a_range_after_the_last_byte_is_416_with_the_size(files: Files, value: str) -> None:
    with pytest.raises(HTTPException, match=f"the file has {SIZE} bytes") as refusal:
        await files.request(range=value)
    assert (refusal.value.status_code, refusal.value.headers) == (416, {"Content-Range": f"bytes */{SIZE}"})
    whole = await files.request(range=value, if_range='"other"')
    assert (whole.status, whole.body) == (200, CONTENT)


async def test_head_ignores_ranges_and_has_no_body(files: Files) -> None:
    for value in ("bytes=0-9", f"bytes={SIZE}-"):
        answer = await files.request("HEAD", range=value)
        assert (answer.status, answer.messages[1:]) == (200, [{"type": "http.response.body", "body": b""}])
        assert answer.headers == (await files.request()).headers


async def test_conditions_are_answered_without_reading_the_disk(files: Files) -> None:
    (files.folder / SHA256).unlink()
    answer = await files.request(if_none_match=TAG)
    assert (answer.status, answer.body, answer.quiet) == (304, b"", True)
    assert answer.headers == {"vary": "Accept-Encoding", "etag": TAG}
    answer = await files.request(if_none_match=ZSTD_TAG, accept_encoding="zstd")
    assert (answer.status, answer.headers["etag"]) == (304, ZSTD_TAG)
    with pytest.raises(HTTPException, match="If-Match does not match") as refusal:
        await files.request(if_match='"other"')
    assert (refusal.value.status_code, refusal.value.headers) == (412, {"ETag": TAG})
    with pytest.raises(FileNotFoundError):
        await files.request(if_none_match='"other"')


@pytest.mark.parametrize(
    ("compressed", "codings"), [(True, "available as zstd or identity;"), (False, "available as identity;")]
)
async def test_excluded_codings_are_406_with_the_available_ones(
    files: Files, compressed: bool, codings: str
) -> None:
    with pytest.raises(HTTPException, match=codings) as refusal:
        await files.request(accept_encoding="gzip, *;q=0", compressed=compressed)
    assert refusal.value.status_code == 406


async def test_a_file_that_is_shortened_during_the_transfer_ends_with_an_error(files: Files) -> None:
    def shorten(message: Message) -> None:
        if message["type"] == "http.response.body":
            os.truncate(files.folder / SHA256, BLOCK_BYTES)

    with pytest.raises(OSError, match=f"the file ended {SIZE - BLOCK_BYTES} bytes early"):
        await files.request(on_send=shorten)


async def test_a_disconnect_ends_the_transfer(files: Files) -> None:
    disconnected = asyncio.Event()
    answer = await files.request(on_send=lambda _: disconnected.set(), disconnected=disconnected)
    assert len(answer.bodies) < SIZE // BLOCK_BYTES
    assert all(message["more_body"] for message in answer.messages[1:])


async def test_no_transfer_leaves_a_descriptor_or_a_task(files: Files) -> None:
    async def fail() -> None:
        def disconnect(_: Message) -> None:
            raise OSError("the client is gone")

        with pytest.raises(OSError, match="the client is gone"):
            await files.request(on_send=disconnect)

    before, tasks = psutil.Process().num_fds(), asyncio.all_tasks()
    for _ in range(3):
        await files.request()
        await files.request("HEAD")
        await files.request(range="bytes=0-9")
        await fail()
        with pytest.raises(HTTPException):
            await files.request(range=f"bytes={SIZE}-")
    await asyncio.sleep(0)
    assert psutil.Process().num_fds() < before + 3
    assert asyncio.all_tasks() == tasks


async def test_a_file_deleted_before_it_is_opened_raises_the_error_of_path_of(tmp_path: Path) -> None:
    digests = []

    def path_of(digest: str) -> Path:
        digests.append(digest)
        if len(digests) > 1:
            raise NotFound("output of partition", "1/0", "the whole output is there")
        return tmp_path / "deleted"

    response = ConditionalFileResponse(path_of, "0" * 64, None, validators={}, headers={})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=response), base_url="http://it") as client:
        with pytest.raises(NotFound, match="the whole output is there"):
            await client.get("/")
    assert len(digests) == 2


async def test_an_empty_file_is_sent_with_an_empty_body(tmp_path: Path) -> None:
    file = tmp_path / "empty"
    file.write_bytes(b"")
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    response = ConditionalFileResponse(lambda _: file, "0" * 64, None, validators={}, headers={})
    await response({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send)
    assert [m["type"] for m in messages] == ["http.response.start", "http.response.body"]
    assert (messages[0]["status"], messages[1]["body"], messages[1].get("more_body", False)) == (
        200,
        b"",
        False,
    )
