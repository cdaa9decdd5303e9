"""A file that goes between being found and being opened."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from starlette.types import Message

from registry.errors import NotFound
from service.web.file_response import ConditionalFileResponse

pytestmark = pytest.mark.anyio


async def test_it_is_not_found_in_the_words_of_who_looks_for_it(tmp_path: Path) -> None:
    looks = []

    def find(digest: str) -> Path:
        looks.append(digest)
        if len(looks) > 1:
            raise NotFound("output of partition", "1/0", "the whole output is there")
        return tmp_path / "gone"

    delivery = ConditionalFileResponse(find, "0" * 64, None, validators={}, headers={})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=delivery), base_url="http://it") as client:
        with pytest.raises(NotFound, match="the whole output is there"):
            await client.get("/")
    assert len(looks) == 2


async def test_an_empty_file_is_a_whole_answer(tmp_path: Path) -> None:
    file = tmp_path / "empty"
    file.write_bytes(b"")
    told: list[Message] = []

    async def send(message: Message) -> None:
        told.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    delivery = ConditionalFileResponse(lambda _: file, "0" * 64, None, validators={}, headers={})
    await delivery({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send)
    assert [m["type"] for m in told] == ["http.response.start", "http.response.body"]
    assert (told[0]["status"], told[1]["body"], told[1].get("more_body", False)) == (200, b"", False)
