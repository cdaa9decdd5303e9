"""A load generator on raw asyncio sockets with keep-alive: it costs less than what it measures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from benchmarks._support import cpu_seconds

Seen = Callable[[float, bytes], None]
"""Told the moment a request was sent, and the answer's body."""


@dataclass
class Load:
    """What came of it: latencies in seconds, and answers that were not 200."""

    latencies: list[float] = field(default_factory=list)
    errors: list[bytes] = field(default_factory=list)
    server_cpu_s: float = 0.0
    wall_s: float = 0.0

    @property
    def requests(self) -> int:
        return len(self.latencies)

    @property
    def cpu_us(self) -> float:
        """CPU microseconds of the server for each request."""
        return self.server_cpu_s / self.requests * 1e6

    def percentile(self, percent: float) -> float:
        """In milliseconds."""
        ordered = sorted(self.latencies)
        return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)] * 1000


class _Connection(asyncio.Protocol):
    """Sends the request, waits for its answer, and again, as long as `go` says so."""

    def __init__(self, request: bytes, load: Load, go: Callable[[], bool], seen: Seen | None) -> None:
        self._request, self._load, self._go, self._seen = request, load, go, seen
        self._received = b""
        self._sent = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head):
            return
        self._load.latencies.append(time.perf_counter() - self._sent)
        if not head.startswith(b"HTTP/1.1 200"):
            self._load.errors.append(self._received)
        if self._seen is not None:
            self._seen(self._sent, body)
        self._received = b""
        self._next()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.done.done():
            self._load.errors.append(b"the connection was closed")
            self.done.set_result(None)

    def _next(self) -> None:
        if self._go():
            self._sent = time.perf_counter()
            self._transport.write(self._request)
        else:
            self.done.set_result(None)
            self._transport.close()


def _length(head: bytes) -> int:
    at = head.lower().index(b"content-length:") + 15
    return int(head[at:].split(b"\r\n", 1)[0])


def request(port: int, path: str, body: bytes, key: str = "", **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([*lines, "", ""]).encode() + body


async def drive(
    port: int,
    content: bytes,
    *,
    concurrency: int = 32,
    go: Callable[[], bool],
    process: psutil.Process | None = None,
    seen: Seen | None = None,
) -> Load:
    """Send `content` over so many connections until `go` says no."""
    load, loop = Load(), asyncio.get_running_loop()
    before, start = cpu_seconds(process) if process else 0.0, time.perf_counter()
    made = [
        await loop.create_connection(lambda: _Connection(content, load, go, seen), "127.0.0.1", port)
        for _ in range(concurrency)
    ]
    for _, connection in made:
        await connection.done
    load.wall_s = time.perf_counter() - start
    load.server_cpu_s = cpu_seconds(process) - before if process else 0.0
    return load


def for_seconds(seconds: float) -> Callable[[], bool]:
    until = time.perf_counter() + seconds
    return lambda: time.perf_counter() < until
