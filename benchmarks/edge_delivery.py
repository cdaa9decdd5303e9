"""What devices cost the server: polls that change nothing, downloads, a crowd while a version is promoted.

    python -m benchmarks.edge_delivery [--requests 10000] [--devices 200] [--megabytes 200] [--json]

Two web processes, so that one must hear of the other's promotions. The exports are noise, put into the
registry by its own functions: what a file holds makes no difference to who sends it. Exit 1 when a device
got anything but one whole version, or a poll anything but 304.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
from sklearn.linear_model import LogisticRegression

from registry import db, exports, queue
from registry.artifacts import Store
from registry.exports import FinishedExport, NewExport
from registry.vocabulary import EXPORT_TASK
from service.config import Settings
from tests.harness.load import LoadReport
from tests.harness.machine import cpu_seconds, describe_machine
from tests.harness.server import Server

MB = 1 << 20
CSV = b"x\n0\n1\n2\n3\n"
LATEST = "/v1/edge/flag/latest.tflite"
CONNECTIONS = 32


class Device:
    """A keep-alive connection, on bare streams: it shall cost less than what it measures."""

    def __init__(self, server: Server) -> None:
        self._port, self._key = server.port, server.key
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str]]:
        """Status and headers; the body is `chunks`."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=MB)
        reader, writer = self._streams
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {self._key}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(body)}", "Content-Type: application/json"] if body else []
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        status, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        named = (field.split(": ", 1) for field in fields)
        return int(status.split()[1]), {name.lower(): value for name, value in named}

    async def chunks(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        assert self._streams is not None
        left = int(headers.get("content-length", 0))
        while left:
            chunk = await self._streams[0].read(min(left, MB))
            if not chunk:
                raise ConnectionError("the server ended in the middle of a file")
            left -= len(chunk)
            yield chunk

    async def pull(self, path: str, **headers: str) -> tuple[dict[str, str], str]:
        """The headers, and the sha256 of what came."""
        status, said = await self.ask("GET", path, **headers)
        found = hashlib.sha256()
        async for chunk in self.chunks(said):
            found.update(chunk)
        if status != 200:
            raise RuntimeError(f"GET {path}: {status}")
        return said, found.hexdigest()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


def write_export(home: Path, model: str, version: int, content: bytes) -> str:
    """A ready export; its sha256. The exporter's part is done in the transaction that asks for it."""
    settings = Settings(home=home)
    store, engine = Store(settings.blobs), db.connect(settings.url)
    blob = store.put([content])
    done = FinishedExport(state="ready", report={}, blob=blob.sha256, bytes=blob.bytes, min_runtime="2.1.0")
    with db.sessions(engine).begin() as session:
        row = exports.create(session, store, model, version, NewExport(), by="benchmark")
        queue.cancel(session, EXPORT_TASK, str(row.id))
        exports.finish(session, row.id, done)
    engine.dispose()
    return blob.sha256


async def poll(server: Server, path: str, etag: str, count: int) -> LoadReport:
    """So many conditional requests over `CONNECTIONS`; whatever is not 304 is an error."""
    load, left = LoadReport(), iter(range(count))
    process = psutil.Process(server.process.pid) if server.process else None
    assert process is not None

    async def one() -> None:
        device = Device(server)
        for _ in left:
            sent = time.perf_counter()
            status, _ = await device.ask("GET", path, If_None_Match=etag)
            load.latencies.append(time.perf_counter() - sent)
            if status != 304:
                load.errors.append(str(status).encode())
        device.close()

    before, start = cpu_seconds(process), time.perf_counter()
    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    load.wall_s, load.server_cpu_s = time.perf_counter() - start, cpu_seconds(process) - before
    return load


async def polls(server: Server, count: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, path in (("file", LATEST), ("manifest", "/v1/edge/flag")):
        device = Device(server)
        _, said = await device.ask("HEAD", path)
        device.close()
        load = await poll(server, path, said["etag"], count)
        figures[name] = {
            "requests": load.requests,
            "not 304": len(load.errors),
            "CPU us": round(load.cpu_us),
            "p50 ms": round(load.percentile(50), 2),
            "p99 ms": round(load.percentile(99), 2),
            "requests/s": round(load.requests / load.wall_s),
        }
    return figures


async def download(server: Server, sha256: str, size: int) -> dict[str, Any]:
    """One large file, and by how much the server's memory grew meanwhile."""
    assert server.process is not None
    family = [psutil.Process(server.process.pid), *server.descendants()]
    before, most, watching = _resident(family), 0, True

    async def watch() -> None:
        nonlocal most
        while watching:
            most = max(most, _resident(family))
            await asyncio.sleep(0.02)

    watcher = asyncio.create_task(watch())
    device, cpu, start = Device(server), cpu_seconds(family[0]), time.perf_counter()
    _, found = await device.pull(f"/v1/blobs/{sha256}")
    seconds, cpu = time.perf_counter() - start, cpu_seconds(family[0]) - cpu
    watching = False
    await watcher
    device.close()
    return {
        "MB": size // MB,
        "whole": found == sha256,
        "MB/s": round(size / MB / seconds),
        "CPU s per GB": round(cpu / (size / MB) * 1024, 2),
        "memory grew MB": round((most - before) / MB, 1),
    }


def _resident(processes: list[psutil.Process]) -> int:
    return sum(p.memory_info().rss for p in processes if p.is_running())


async def crowd(server: Server, files: dict[str, int], devices: int) -> dict[str, Any]:
    """Everybody pulls while version 2 becomes champion. `files`: the version of each sha256."""
    got: Counter[int] = Counter()
    torn = 0

    async def pull(number: int) -> None:
        nonlocal torn
        await asyncio.sleep(random.random() * 0.5)
        device = Device(server)
        said, found = await device.pull(LATEST, X_Device_Id=f"device-{number}")
        device.close()
        got[int(said["x-model-version"])] += 1
        torn += files.get(found) != int(said["x-model-version"]) or found != said["x-model-sha256"]

    async def promote() -> None:
        await asyncio.sleep(0.25)
        await _promote(server, 2)

    start = time.perf_counter()
    await asyncio.gather(promote(), *(pull(n) for n in range(devices)))
    seconds = time.perf_counter() - start
    return {"devices": devices, "old": got[1], "new": got[2], "torn": torn, "seconds": round(seconds, 2)}


async def _promote(server: Server, version: int) -> None:
    device = Device(server)
    body = json.dumps({"version": version}).encode()
    status, said = await device.ask("PUT", "/v1/models/flag/aliases/champion", body)
    async for _ in device.chunks(said):
        pass
    device.close()
    if status != 200:
        raise RuntimeError(f"promote: {status}")


async def moved(server: Server, rounds: int = 10) -> dict[str, Any]:
    """After a promotion is answered: how long until no connection is told the version before."""
    latest: list[float] = []
    for number in range(rounds):
        version = 1 + number % 2
        devices = [Device(server) for _ in range(16)]  # shared out between the processes
        await _promote(server, version)
        answered = last_old = time.perf_counter()
        while time.perf_counter() - answered < 0.6:
            for device in devices:
                _, said = await device.ask("HEAD", LATEST)
                if said["x-model-version"] != str(version):
                    last_old = time.perf_counter()
        latest.append((last_old - answered) * 1000)
        for device in devices:
            device.close()
    return {
        "promotions": rounds,
        "median ms": round(sorted(latest)[rounds // 2]),
        "most ms": round(max(latest)),
    }


def measure(requests: int, devices: int, megabytes: int) -> dict[str, dict[str, Any]]:
    noise = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        with Server(home, Path(folder) / "log", workers=2) as server:
            server.start()
            for labels in ((0, 0, 1, 1), (1, 1, 0, 0)):
                server.publish("flag", LogisticRegression().fit([[0], [1], [2], [3]], labels), CSV)
            server.publish("large", LogisticRegression().fit([[0], [1]], [0, 1]), CSV)
            files = {write_export(home, "flag", v, noise.randbytes(4 * MB)): v for v in (1, 2)}
            large = write_export(home, "large", 1, noise.randbytes(MB) * megabytes)
            asyncio.run(_promote(server, 1))
            time.sleep(0.5)  # the other process looks every 100 ms
            return {
                **{f"poll: {k}": v for k, v in asyncio.run(polls(server, requests)).items()},
                "download": asyncio.run(download(server, large, megabytes * MB)),
                "crowd": asyncio.run(crowd(server, files, devices)),
                "promotion seen by all": asyncio.run(moved(server)),
            }


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--requests", type=int, default=10_000)
    asked.add_argument("--devices", type=int, default=200)
    asked.add_argument("--megabytes", type=int, default=200)
    asked.add_argument("--json", action="store_true")
    given = asked.parse_args()
    figures = measure(given.requests, given.devices, given.megabytes)
    if given.json:
        print(json.dumps(figures))
    else:
        print(describe_machine())
        for name, found in figures.items():
            print(f"{name:<24}" + ", ".join(f"{k} {v}" for k, v in found.items()))
    sound = figures["crowd"]["torn"] == 0 and figures["download"]["whole"]
    return 0 if sound and not any(f.get("not 304") for f in figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
