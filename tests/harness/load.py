"""A load generator over asyncio sockets with keep-alive, cheaper than the servers that it measures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from tests.harness.machine import cpu_seconds

ResponseCallback = Callable[[float, bytes], None]
"""Called with the time at which a request was sent (`perf_counter`) and the body of its response."""


@dataclass
class LoadReport:
    """Latencies in seconds, responses other than 200, CPU time of the server and wall time in seconds."""

    latencies: list[float] = field(default_factory=list)
    errors: list[bytes] = field(default_factory=list)
    server_cpu_s: float = 0.0
    wall_s: float = 0.0

    @property
    def requests(self) -> int:
        return len(self.latencies)

    @property
    def cpu_us(self) -> float:
        """CPU microseconds of the server per request."""
        return self.server_cpu_s / self.requests * 1e6

    def percentile(self, percent: float) -> float:
        """Latency in milliseconds."""
        ordered = sorted(self.latencies)
        return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)] * 1000


class _Connection(asyncio.Protocol):
    """Sends the request and waits for the response, in a loop, while `keep_going()` is true."""

    def __init__(
        self,
        request: bytes,
        report: LoadReport,
        keep_going: Callable[[], bool],
        on_response: ResponseCallback | None,
    ) -> None:
        self._request, self._report = request, report
        self._keep_going, self._on_response = keep_going, on_response
        self._received = b""
        self._sent_at = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send_next()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < _content_length(head):
            return
        self._report.latencies.append(time.perf_counter() - self._sent_at)
        if not head.startswith(b"HTTP/1.1 200"):
            self._report.errors.append(self._received)
        if self._on_response is not None:
            self._on_response(self._sent_at, body)
        self._received = b""
        self._send_next()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.done.done():
            self._report.errors.append(b"the connection was closed")
            self.done.set_result(None)

    def _send_next(self) -> None:
        if self._keep_going():
            self._sent_at = time.perf_counter()
            self._transport.write(self._request)
        else:
            self.done.set_result(None)
            self._transport.close()


def _content_length(head: bytes) -> int:
    start = head.lower().index(b"content-length:") + 15
    return int(head[start:].split(b"\r\n", 1)[0])


def post_request(port: int, path: str, body: bytes, key: str = "", **headers: str) -> bytes:
    """Return the bytes of an HTTP/1.1 POST; `_` in a header's name stands for `-`."""
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([*lines, "", ""]).encode() + body


async def generate_load(
    port: int,
    request: bytes,
    *,
    concurrency: int = 32,
    keep_going: Callable[[], bool],
    process: psutil.Process | None = None,
    on_response: ResponseCallback | None = None,
) -> LoadReport:
    """Send `request` over `concurrency` connections until `keep_going()` is false.

    The report contains the CPU time of `process`, the server.
    """
    report, loop = LoadReport(), asyncio.get_running_loop()
    cpu_before, start = cpu_seconds(process) if process else 0.0, time.perf_counter()
    connections = [
        await loop.create_connection(
            lambda: _Connection(request, report, keep_going, on_response), "127.0.0.1", port
        )
        for _ in range(concurrency)
    ]
    for _, connection in connections:
        await connection.done
    report.wall_s = time.perf_counter() - start
    report.server_cpu_s = cpu_seconds(process) - cpu_before if process else 0.0
    return report


def for_seconds(seconds: float) -> Callable[[], bool]:
    """Return a `keep_going` that is true for this long from now on."""
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() < end
