"""Real downloads from real servers: interrupted, many at once, large, abandoned."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest

from registry import db
from registry.artifacts import Store
from service.config import Settings
from tests.harness.server import Server, serving
from tests.service.edge.exported import File, noise, some_file, write_export

LATEST = "/v1/edge/flag/latest.tflite"
MB = 1 << 20
LARGE = 200 * MB
FLAT = 48 * MB
"""The server's memory may grow by so much, whatever the size of what it sends."""


class Shop(NamedTuple):
    """A server with several web processes, and what it has."""

    server: Server
    files: dict[int, File]  # of `flag`, by version; 1 is champion
    middling: File  # of `forest`
    large: File  # of `price`

    def curl(self, path: str, out: Path, *more: str) -> list[str]:
        key = f"Authorization: Bearer {self.server.key}"
        return ["curl", "-sS", "--fail", "-H", key, "-o", str(out), *more, self.server.url + path]


@pytest.fixture(scope="module")
def shop(published_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    home = shutil.copytree(published_home, tmp_path_factory.mktemp("shop") / "home")
    settings = Settings(home=home)
    engine = db.connect(settings.url)
    sessions, store = db.sessions(engine), Store(settings.blobs)
    files = {v: write_export(sessions, store, some_file(v, MB), version=v) for v in (1, 2)}
    middling = write_export(sessions, store, noise(40 * MB), model="forest", compressed=False)
    large = write_export(sessions, store, noise(MB) * (LARGE // MB), model="price", compressed=False)
    engine.dispose()
    with serving(home, workers=2) as server:
        yield Shop(server, files, middling, large)


def until(is_so: Callable[[], bool], within_s: float = 20.0) -> None:
    end = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_curl_goes_on_in_the_middle_of_a_file(shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "model.tflite"
    path = "/v1/edge/forest/latest.tflite"
    with subprocess.Popen(shop.curl(path, out, "--limit-rate", "5M")) as first:
        until(lambda: size(out) > MB)
        first.kill()
    begun = size(out)
    assert MB < begun < len(shop.middling.content)
    said = tmp_path / "headers"
    subprocess.run(shop.curl(path, out, "-C", "-", "-D", str(said)), check=True)
    assert hashlib.sha256(out.read_bytes()).hexdigest() == shop.middling.sha256
    headers = said.read_text().lower()
    total = len(shop.middling.content)
    assert headers.startswith("http/1.1 206")
    assert f"content-range: bytes {begun}-{total - 1}/{total}" in headers


def test_curl_resumes_a_blob_only_when_it_is_the_same(shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "model.tflite"
    out.write_bytes(shop.files[1].content[: MB // 2])
    blob = f"/v1/blobs/{shop.files[2].sha256}"
    mine = f"If-Range: {shop.files[1].etag}"
    answer = subprocess.run(shop.curl(blob, out, "-C", "-", "-H", mine), check=False)
    assert answer.returncode == 33, "the server sends the whole, and curl says that it cannot resume"


def test_curl_decodes_the_compressed_form_to_the_same_bytes(shop: Shop, tmp_path: Path) -> None:
    out, said = tmp_path / "model.tflite", tmp_path / "headers"
    subprocess.run(shop.curl(LATEST, out, "-H", "Accept-Encoding: zstd", "-D", str(said)), check=True)
    assert out.read_bytes() == shop.files[1].zstd
    assert "content-encoding: zstd" in said.read_text().lower()


@pytest.mark.slow
def test_two_hundred_devices_get_one_whole_version_each_while_it_is_promoted(shop: Shop) -> None:
    """Old or new, and never a mixture: sha256 of what came is what the header says."""

    async def pull(client: httpx.AsyncClient, number: int, begun: asyncio.Semaphore | None = None) -> int:
        headers = {"Accept-Encoding": "identity", "X-Device-Id": f"device-{number}"}
        async with client.stream("GET", LATEST, headers=headers) as answer:
            assert answer.status_code == 200
            if begun is not None:
                begun.release()
            found = hashlib.sha256()
            async for chunk in answer.aiter_raw():
                found.update(chunk)
        version = int(answer.headers["x-model-version"])
        assert found.hexdigest() == answer.headers["x-model-sha256"] == shop.files[version].sha256
        return version

    async def promote(client: httpx.AsyncClient, version: int, begun: asyncio.Semaphore) -> None:
        for _ in range(20):  # into the middle of the crowd
            await begun.acquire()
        answer = await client.put("/v1/models/flag/aliases/champion", json={"version": version})
        assert answer.status_code == 200, answer.text

    async def everybody() -> None:
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {shop.server.key}"}
        async with httpx.AsyncClient(
            base_url=shop.server.url, headers=headers, limits=limits, timeout=120
        ) as client:
            for version in (2, 1):
                begun = asyncio.Semaphore(0)
                first = [asyncio.create_task(pull(client, n, begun)) for n in range(100)]
                await promote(client, version, begun)
                versions = await asyncio.gather(*first, *(pull(client, n) for n in range(100, 200)))
                assert Counter(versions).total() == 200
                assert set(versions) == {1, 2}
                end = time.monotonic() + 20  # the other process looks every 100 ms
                while {await pull(client, n) for n in range(20)} != {version}:
                    assert time.monotonic() < end

    asyncio.run(everybody())


def test_a_promotion_is_what_latest_means_in_every_process(shop: Shop) -> None:
    def latest() -> set[int]:
        versions = set()
        for _ in range(20):  # each over a new connection, which any of the processes may take
            with shop.server.client() as client:
                versions.add(int(client.head(LATEST).headers["x-model-version"]))
        return versions

    with shop.server.client() as client:
        for version in (2, 1):
            body = {"version": version}
            assert client.put("/v1/models/flag/aliases/champion", json=body).status_code == 200
            assert client.head(LATEST).headers["x-model-version"] == str(version)
            until(lambda wanted={version}: latest() == wanted)


def test_a_thousand_conditional_requests_are_all_304_and_leave_no_line(shop: Shop) -> None:
    headers = {"If-None-Match": shop.files[1].etag}
    with shop.server.client() as client:
        assert {client.get(LATEST, headers=headers).status_code for _ in range(1000)} == {304}
    told = [line for line in shop.server.log_records() if line.get("status") == 304]
    assert [line for line in told if line["ms"] < 1000] == []


@pytest.mark.slow
def test_memory_stays_flat_while_a_large_file_is_sent(shop: Shop) -> None:
    web = web_processes(shop.server)
    path = f"/v1/blobs/{shop.large.sha256}"
    before, most, found = settled(shop, web), 0, hashlib.sha256()
    with shop.server.client() as client, client.stream("GET", path) as answer:
        assert answer.headers["content-length"] == str(LARGE)
        for chunk in answer.iter_raw(MB):
            found.update(chunk)
            most = max(most, resident(web))
    assert found.hexdigest() == shop.large.sha256
    assert most - before < FLAT


def test_clients_that_read_nothing_or_go_away_cost_no_memory_and_no_descriptors(shop: Shop) -> None:
    path = f"/v1/blobs/{shop.large.sha256}"
    web = web_processes(shop.server)
    before, open_before = settled(shop, web), descriptors(web)
    for _ in range(5):
        clients = [shop.server.client() for _ in range(8)]
        answers = [c.send(c.build_request("GET", path), stream=True) for c in clients]
        assert descriptors(web) > open_before + 10, "a file and a socket for each"
        assert resident(web) - before < FLAT
        for answer, client in zip(answers, clients, strict=True):
            answer.close()
            client.close()
        # the database's own come and go
        until(lambda: descriptors(web) < open_before + 10)


def descriptors(web: list[psutil.Process]) -> int:
    return sum(p.num_fds() for p in web)


def settled(shop: Shop, web: list[psutil.Process]) -> int:
    """Bytes resident in all, when the models that a start loads are loaded: each in every process."""
    with shop.server.client() as client:
        champions = len(client.get("/v1/models").json()["items"])

        def loaded() -> bool:
            found = re.findall(r"^trivium_loaded_models\{.*\} (\S+)", client.get("/metrics").text, re.M)
            return sum(map(float, found)) >= champions * len(web)  # those before a promotion stay a while

        until(loaded)
    return resident(web)


def resident(web: list[psutil.Process]) -> int:
    return sum(p.memory_info().rss for p in web)


def web_processes(server: Server) -> list[psutil.Process]:
    found = psutil.Process(server.process.pid).children(recursive=True)
    web = [p for p in found if "service.serve" in p.cmdline()]
    assert len(web) == 2
    return web
