"""Load of devices on the server: polls without changes, downloads, and many pulls during a promotion.

    python -m benchmarks.edge_delivery [--requests 10000] [--devices 200] [--megabytes 200] [--json]

The server has two web processes, so that one must notice the promotions of the other. The exports are random
bytes, written by the registry's functions, because the content of a file does not affect its delivery. Exit
code 1 when a device got anything but one complete version, or a poll anything but 304.
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


class DeviceConnection:
    """A keep-alive connection over asyncio streams, cheaper than the server that it measures."""

    def __init__(self, server: Server) -> None:
        self._port, self._key = server.port, server.key
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str]]:
        """Send a request and return status and headers; `chunks` yields the body."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=MB)
        reader, writer = self._streams
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {self._key}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(body)}", "Content-Type: application/json"] if body else []
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        status, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        pairs = (field.split(": ", 1) for field in fields)
        return int(status.split()[1]), {name.lower(): value for name, value in pairs}

    async def chunks(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        assert self._streams is not None
        remaining = int(headers.get("content-length", 0))
        while remaining:
            chunk = await self._streams[0].read(min(remaining, MB))
            if not chunk:
                raise ConnectionError("the server closed the connection in the middle of a file")
            remaining -= len(chunk)
            yield chunk

    async def pull(self, path: str, **headers: str) -> tuple[dict[str, str], str]:
        """Download `path` and return the response's headers and the sha256 of the body."""
        status, response_headers = await self.request("GET", path, **headers)
        digest = hashlib.sha256()
        async for chunk in self.chunks(response_headers):
            digest.update(chunk)
        if status != 200:
            raise RuntimeError(f"GET {path}: {status}")
        return response_headers, digest.hexdigest()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


def write_export(home: Path, model: str, version: int, content: bytes) -> str:
    """Create a ready export, without an exporter, and return its sha256."""
    settings = Settings(home=home)
    store, engine = Store(settings.blobs), db.connect(settings.url)
    blob = store.put([content])
    result = FinishedExport(state="ready", report={}, blob=blob.sha256, bytes=blob.bytes, min_runtime="2.1.0")
    with db.sessions(engine).begin() as session:
        row = exports.create(session, store, model, version, NewExport(), by="benchmark")
        queue.cancel(session, EXPORT_TASK, str(row.id))
        exports.finish(session, row.id, result)
    engine.dispose()
    return blob.sha256


async def poll(server: Server, path: str, etag: str, count: int) -> LoadReport:
    """Send `count` conditional requests over `CONNECTIONS` connections; any status but 304 is an error."""
    load, requests = LoadReport(), iter(range(count))
    process = psutil.Process(server.process.pid)

    async def poll_in_loop() -> None:
        device = DeviceConnection(server)
        for _ in requests:
            start = time.perf_counter()
            status, _ = await device.request("GET", path, If_None_Match=etag)
            load.latencies.append(time.perf_counter() - start)
            if status != 304:
                load.errors.append(str(status).encode())
        device.close()

    cpu_before, load_start = cpu_seconds(process), time.perf_counter()
    await asyncio.gather(*(poll_in_loop() for _ in range(CONNECTIONS)))
    load.wall_s, load.server_cpu_s = time.perf_counter() - load_start, cpu_seconds(process) - cpu_before
    return load


async def measure_polls(server: Server, count: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, path in (("file", LATEST), ("manifest", "/v1/edge/flag")):
        device = DeviceConnection(server)
        _, headers = await device.request("HEAD", path)
        device.close()
        load = await poll(server, path, headers["etag"], count)
        figures[name] = {
            "requests": load.requests,
            "not 304": len(load.errors),
            "CPU us": round(load.cpu_us),
            "p50 ms": round(load.percentile(50), 2),
            "p99 ms": round(load.percentile(99), 2),
            "requests/s": round(load.requests / load.wall_s),
        }
    return figures


async def measure_download(server: Server, sha256: str, size: int) -> dict[str, Any]:
    """Download one large file and measure how much the server's memory grows meanwhile."""
    family = [psutil.Process(server.process.pid), *server.descendants()]
    before, peak, watching = _resident(family), 0, True

    async def watch() -> None:
        nonlocal peak
        while watching:
            peak = max(peak, _resident(family))
            await asyncio.sleep(0.02)

    watcher = asyncio.create_task(watch())
    device, cpu, start = DeviceConnection(server), cpu_seconds(family[0]), time.perf_counter()
    _, digest = await device.pull(f"/v1/blobs/{sha256}")
    seconds, cpu = time.perf_counter() - start, cpu_seconds(family[0]) - cpu
    watching = False
    await watcher
    device.close()
    return {
        "MB": size // MB,
        "complete": digest == sha256,
        "MB/s": round(size / MB / seconds),
        "CPU s per GB": round(cpu / (size / MB) * 1024, 2),
        "memory grew MB": round((peak - before) / MB, 1),
    }


def _resident(processes: list[psutil.Process]) -> int:
    return sum(p.memory_info().rss for p in processes if p.is_running())


async def measure_pulls(server: Server, files: dict[str, int], devices: int) -> dict[str, Any]:
    """Let all devices pull while version 2 becomes champion. `files`: versions by sha256."""
    versions: Counter[int] = Counter()
    wrong = 0

    async def pull(number: int) -> None:
        nonlocal wrong
        await asyncio.sleep(random.random() * 0.5)
        device = DeviceConnection(server)
        headers, digest = await device.pull(LATEST, X_Device_Id=f"device-{number}")
        device.close()
        version = int(headers["x-model-version"])
        versions[version] += 1
        wrong += files.get(digest) != version or digest != headers["x-model-sha256"]

    async def promote() -> None:
        await asyncio.sleep(0.25)
        await _promote(server, 2)

    start = time.perf_counter()
    await asyncio.gather(promote(), *(pull(n) for n in range(devices)))
    seconds = time.perf_counter() - start
    counts = {"old": versions[1], "new": versions[2], "wrong": wrong}
    return {"devices": devices, **counts, "seconds": round(seconds, 2)}


async def _promote(server: Server, version: int) -> None:
    device = DeviceConnection(server)
    body = json.dumps({"version": version}).encode()
    status, headers = await device.request("PUT", "/v1/models/flag/aliases/champion", body)
    async for _ in device.chunks(headers):
        pass
    device.close()
    if status != 200:
        raise RuntimeError(f"promote: {status}")


async def measure_promotion_delay(server: Server, rounds: int = 10) -> dict[str, Any]:
    """Measure the time from the response to a promotion until no connection gets the old version."""
    delays: list[float] = []
    for number in range(rounds):
        version = 1 + number % 2
        devices = [DeviceConnection(server) for _ in range(16)]  # distributed over the processes
        await _promote(server, version)
        response_time = last_old = time.perf_counter()
        while time.perf_counter() - response_time < 0.6:
            for device in devices:
                _, headers = await device.request("HEAD", LATEST)
                if headers["x-model-version"] != str(version):
                    last_old = time.perf_counter()
        delays.append((last_old - response_time) * 1000)
        for device in devices:
            device.close()
    return {
        "promotions": rounds,
        "median ms": round(sorted(delays)[rounds // 2]),
        "max ms": round(max(delays)),
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
            time.sleep(0.5)  # the other process polls every 100 ms
            return {
                **{f"poll: {k}": v for k, v in asyncio.run(measure_polls(server, requests)).items()},
                "download": asyncio.run(measure_download(server, large, megabytes * MB)),
                "pulls during a promotion": asyncio.run(measure_pulls(server, files, devices)),
                "promotion seen by all": asyncio.run(measure_promotion_delay(server)),
            }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.requests, options.devices, options.megabytes)
    if options.json:
        print(json.dumps(figures))
    else:
        print(describe_machine())
        for name, values in figures.items():
            print(f"{name:<24}" + ", ".join(f"{k} {v}" for k, v in values.items()))
    correct = figures["pulls during a promotion"]["wrong"] == 0 and figures["download"]["complete"]
    return 0 if correct and not any(f.get("not 304") for f in figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
