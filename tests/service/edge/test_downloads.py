"""Downloads from server processes: interrupted, concurrent, large, and abandoned."""

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
from tests.service.edge.export_helpers import File, noise, some_file, write_export

LATEST = "/v1/edge/flag/latest.tflite"
MB = 1 << 20
LARGE = 200 * MB
MAX_GROWTH = 48 * MB
"""Bound of the growth of the server's memory, independent of the size of the file."""


class DownloadServer(NamedTuple):
    """A server with several web processes, and its files."""

    server: Server
    files: dict[int, File]  # of `flag`, by version; 1 is champion
    medium: File  # of `forest`
    large: File  # of `price`

    def curl(self, path: str, out: Path, *options: str) -> list[str]:
        key = f"Authorization: Bearer {self.server.key}"
        return ["curl", "-sS", "--fail", "-H", key, "-o", str(out), *options, self.server.url + path]


@pytest.fixture(scope="module")
def download_server(
    published_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DownloadServer]:
    home = shutil.copytree(published_home, tmp_path_factory.mktemp("shop") / "home")
    settings = Settings(home=home)
    engine = db.connect(settings.url)
    sessions, store = db.sessions(engine), Store(settings.blobs)
    files = {v: write_export(sessions, store, some_file(v, MB), version=v) for v in (1, 2)}
    medium = write_export(sessions, store, noise(40 * MB), model="forest", compressed=False)
    large = write_export(sessions, store, noise(MB) * (LARGE // MB), model="price", compressed=False)
    engine.dispose()
    with serving(home, workers=2) as server:
        yield DownloadServer(server, files, medium, large)


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_curl_resumes_in_the_middle_of_a_file(download_server: DownloadServer, tmp_path: Path) -> None:
    out = tmp_path / "model.tflite"
    path = "/v1/edge/forest/latest.tflite"
    with subprocess.Popen(download_server.curl(path, out, "--limit-rate", "5M")) as first:
        wait_until(lambda: size(out) > MB)
        first.kill()
    offset = size(out)
    assert MB < offset < len(download_server.medium.content)
    headers_file = tmp_path / "headers"
    subprocess.run(download_server.curl(path, out, "-C", "-", "-D", str(headers_file)), check=True)
    assert hashlib.sha256(out.read_bytes()).hexdigest() == download_server.medium.sha256
    headers = headers_file.read_text().lower()
    total = len(download_server.medium.content)
    assert headers.startswith("http/1.1 206")
    assert f"content-range: bytes {offset}-{total - 1}/{total}" in headers


def test_curl_does_not_resume_with_another_file(download_server: DownloadServer, tmp_path: Path) -> None:
    out = tmp_path / "model.tflite"
    out.write_bytes(download_server.files[1].content[: MB // 2])
    blob = f"/v1/blobs/{download_server.files[2].sha256}"
    if_range = f"If-Range: {download_server.files[1].etag}"
    answer = subprocess.run(download_server.curl(blob, out, "-C", "-", "-H", if_range), check=False)
    assert answer.returncode == 33, "the server sends the whole file, so curl cannot resume"


def test_curl_gets_the_compressed_file(download_server: DownloadServer, tmp_path: Path) -> None:
    out, headers_file = tmp_path / "model.tflite", tmp_path / "headers"
    subprocess.run(
        download_server.curl(LATEST, out, "-H", "Accept-Encoding: zstd", "-D", str(headers_file)), check=True
    )
    assert out.read_bytes() == download_server.files[1].zstd
    assert "content-encoding: zstd" in headers_file.read_text().lower()


@pytest.mark.slow
def test_concurrent_downloads_during_a_promotion_are_never_mixed(download_server: DownloadServer) -> None:
    """Each of 50 devices gets the old or the new file: the sha256 is the one in the header."""

    async def pull(client: httpx.AsyncClient, number: int, started: asyncio.Semaphore | None = None) -> int:
        headers = {"Accept-Encoding": "identity", "X-Device-Id": f"device-{number}"}
        async with client.stream("GET", LATEST, headers=headers) as answer:
            assert answer.status_code == 200
            if started is not None:
                started.release()
            digest = hashlib.sha256()
            async for chunk in answer.aiter_raw():
                digest.update(chunk)
        version = int(answer.headers["x-model-version"])
        assert digest.hexdigest() == answer.headers["x-model-sha256"] == download_server.files[version].sha256
        return version

    async def promote(client: httpx.AsyncClient, version: int, started: asyncio.Semaphore) -> None:
        for _ in range(20):  # while the downloads run
            await started.acquire()
        answer = await client.put("/v1/models/flag/aliases/champion", json={"version": version})
        assert answer.status_code == 200, answer.text

    async def download_all() -> None:
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {download_server.server.key}"}
        async with httpx.AsyncClient(
            base_url=download_server.server.url, headers=headers, limits=limits, timeout=120
        ) as client:
            for version in (2, 1):
                started = asyncio.Semaphore(0)
                first = [asyncio.create_task(pull(client, n, started)) for n in range(25)]
                await promote(client, version, started)
                versions = await asyncio.gather(*first, *(pull(client, n) for n in range(25, 50)))
                assert Counter(versions).total() == 50
                assert set(versions) == {1, 2}
                deadline = time.monotonic() + 20  # the other process polls every 100 ms
                while {await pull(client, n) for n in range(20)} != {version}:
                    assert time.monotonic() < deadline

    asyncio.run(download_all())


def test_every_process_serves_the_promoted_version(download_server: DownloadServer) -> None:
    def latest() -> set[int]:
        versions = set()
        for _ in range(20):  # each over a new connection, which any of the processes may take
            with download_server.server.client() as client:
                versions.add(int(client.head(LATEST).headers["x-model-version"]))
        return versions

    with download_server.server.client() as client:
        for version in (2, 1):
            body = {"version": version}
            assert client.put("/v1/models/flag/aliases/champion", json=body).status_code == 200
            assert client.head(LATEST).headers["x-model-version"] == str(version)
            wait_until(lambda expected={version}: latest() == expected)


def test_conditional_requests_are_304_and_not_logged(download_server: DownloadServer) -> None:
    headers = {"If-None-Match": download_server.files[1].etag}
    with download_server.server.client() as client:
        assert {client.get(LATEST, headers=headers).status_code for _ in range(200)} == {304}
    logged = [line for line in download_server.server.log_records() if line.get("status") == 304]
    assert [line for line in logged if line["ms"] < 1000] == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_size_of_a_file(download_server: DownloadServer) -> None:
    web = web_processes(download_server.server)
    path = f"/v1/blobs/{download_server.large.sha256}"
    before, peak, digest = settled_memory(download_server, web), 0, hashlib.sha256()
    with download_server.server.client() as client, client.stream("GET", path) as answer:
        assert answer.headers["content-length"] == str(LARGE)
        for chunk in answer.iter_raw(MB):
            digest.update(chunk)
            peak = max(peak, resident(web))
    assert digest.hexdigest() == download_server.large.sha256
    assert peak - before < MAX_GROWTH


def test_stalled_and_disconnected_clients_leave_no_memory_and_no_descriptors(
    download_server: DownloadServer,
) -> None:
    path = f"/v1/blobs/{download_server.large.sha256}"
    web = web_processes(download_server.server)
    before, open_before = settled_memory(download_server, web), descriptors(web)
    for _ in range(5):
        clients = [download_server.server.client() for _ in range(8)]
        answers = [c.send(c.build_request("GET", path), stream=True) for c in clients]
        assert descriptors(web) > open_before + 10, "a file and a socket per client"
        assert resident(web) - before < MAX_GROWTH
        for answer, client in zip(answers, clients, strict=True):
            answer.close()
            client.close()
        # database connections come and go
        wait_until(lambda: descriptors(web) < open_before + 10)


def descriptors(web: list[psutil.Process]) -> int:
    return sum(p.num_fds() for p in web)


def settled_memory(download_server: DownloadServer, web: list[psutil.Process]) -> int:
    """Resident bytes of all processes, after each process has loaded every champion."""
    with download_server.server.client() as client:
        champions = len(client.get("/v1/models").json()["items"])

        def loaded() -> bool:
            counts = re.findall(r"^trivium_loaded_models\{.*\} (\S+)", client.get("/metrics").text, re.M)
            return sum(map(float, counts)) >= champions * len(web)  # a previous champion stays for a while

        wait_until(loaded)
    return resident(web)


def resident(web: list[psutil.Process]) -> int:
    return sum(p.memory_info().rss for p in web)


def web_processes(server: Server) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children(recursive=True)
    web = [p for p in children if "service.serve" in p.cmdline()]
    assert len(web) == 2
    return web
