"""One file over HTTP: which headers, which status, which bytes."""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from service.config import Settings
from tests.service.api import Api, running
from tests.service.edge.exported import File, add_export, some_file

pytestmark = pytest.mark.anyio

LATEST = "/v1/edge/flag/latest.tflite"
IDENTITY = {"Accept-Encoding": "identity"}
ZSTD = {"Accept-Encoding": "zstd"}


class Edge(NamedTuple):
    api: Api
    file: File  # of `flag`'s champion, version 1

    async def get(self, path: str = LATEST, method: str = "GET", **headers: str) -> httpx.Response:
        named = {k.replace("_", "-"): v for k, v in headers.items()}
        return await self.api.client.request(method, path, headers=IDENTITY | named)


@pytest.fixture(scope="module")
async def edge(
    anyio_backend: str, published_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Edge]:
    home = shutil.copytree(published_home, tmp_path_factory.mktemp("edge") / "home")
    async with running(Settings(home=home)) as api:
        yield Edge(api, add_export(api.services, some_file(1)))


def digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


async def test_the_newest_file_says_what_it_is(edge: Edge):
    answer = await edge.get()
    assert answer.status_code == 200
    assert answer.content == edge.file.content
    expected = {
        "content-type": "application/octet-stream",
        "content-length": str(len(edge.file.content)),
        "content-disposition": 'attachment; filename="flag-1.tflite"',
        "cache-control": "private, no-cache",
        "accept-ranges": "bytes",
        "etag": edge.file.etag,
        "repr-digest": digest(edge.file.content),
        "vary": "Accept-Encoding, X-Device-Id, X-Runtime-Version",
        "x-model-version": "1",
        "x-model-sha256": edge.file.sha256,
        "x-min-runtime": "2.1.0",
    }
    assert {k: v for k, v in answer.headers.items() if k != "x-request-id"} == expected
