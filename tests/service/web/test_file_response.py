"""File responses without an application: deleted and empty files."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from starlette.types import Message

from registry.errors import NotFound
from service.web.file_response import ConditionalFileResponse

pytestmark = pytest.mark.anyio


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
