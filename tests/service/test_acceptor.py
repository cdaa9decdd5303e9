"""Two acceptors of one listening socket, each with the event loop's own connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import AsyncIterator

import pytest

from service import acceptor
from service.acceptor import Acceptor, CountedConnections
from service.process_group import ProcessGroup, create_shared_memory

pytestmark = pytest.mark.anyio


class Process:
    """What one web process accepts: in this test, all are in one event loop."""

    def __init__(self, listening: socket.socket, memory: int, number: int) -> None:
        self.group = ProcessGroup(memory, number, 2)
        self.connections = CountedConnections(self.group)
        self._listening = listening.dup()
        self.acceptor = Acceptor(self._listening, self._create_protocol, self.connections, self.group)

    def _create_protocol(self) -> asyncio.Protocol:
        return Connection(self.connections)

    async def close(self) -> None:
        await self.acceptor.close()
        self._listening.close()
        for connection in tuple(self.connections):
            connection.transport.abort()


class Connection(asyncio.Protocol):
    """Answers with a byte when it is accepted."""

    def __init__(self, connections: CountedConnections) -> None:
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._connections.add(self)
        transport.write(b"+")

    def connection_lost(self, _: Exception | None) -> None:
        self._connections.discard(self)


@pytest.fixture
async def listening() -> AsyncIterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield server


@pytest.fixture
async def processes(listening: socket.socket) -> AsyncIterator[tuple[Process, Process]]:
    memory = create_shared_memory(2)
    started = Process(listening, memory, 0), Process(listening, memory, 1)
    yield started
    for process in started:
        await process.close()
    os.close(memory)


async def connect(listening: socket.socket, count: int) -> contextlib.AsyncExitStack:
    """Open connections at the same time, and return when all were accepted."""
    opened = contextlib.AsyncExitStack()

    async def open_one() -> None:
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        opened.callback(writer.close)
        assert await reader.readexactly(1) == b"+"

    await asyncio.gather(*(open_one() for _ in range(count)))
    return opened


async def test_a_burst_of_connections_is_divided(
    anyio_backend: str, listening: socket.socket, processes: tuple[Process, Process]
) -> None:
    async with await connect(listening, 64):
        counts = [len(process.connections) for process in processes]
    assert sum(counts) == 64
    assert min(counts) >= 28


async def test_the_process_with_fewer_connections_accepts(
    anyio_backend: str,
    listening: socket.socket,
    processes: tuple[Process, Process],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(acceptor, "DEFERRAL_S", 60.0)
    busy, idle = processes
    elsewhere = range(10)  # connections that are not of this test
    for number in elsewhere:
        busy.connections.add(number)
    async with await connect(listening, 6):
        assert len(idle.connections) == 6
    for number in elsewhere:
        busy.connections.discard(number)


async def test_a_connection_that_no_other_process_accepts_is_accepted_late(
    anyio_backend: str, listening: socket.socket, processes: tuple[Process, Process]
) -> None:
    busy, hanging = processes
    await hanging.acceptor.close()
    hanging.group.set_connections(0)  # as if it did not run, but had not ended
    async with await connect(listening, 8):
        assert len(busy.connections) == 8


async def test_a_process_that_closed_leaves_all_connections_to_the_others(
    anyio_backend: str,
    listening: socket.socket,
    processes: tuple[Process, Process],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(acceptor, "DEFERRAL_S", 60.0)
    closed, open_one = processes
    await closed.acceptor.close()
    async with await connect(listening, 8):
        assert len(open_one.connections) == 8


async def test_a_process_that_closed_stays_out_of_the_comparison_while_its_connections_end(
    anyio_backend: str, processes: tuple[Process, Process]
) -> None:
    closed, open_one = processes
    closed.connections.add("a connection")
    open_one.group.set_connections(7)
    await closed.acceptor.close()
    closed.connections.discard("a connection")
    assert open_one.group.fewest_connections() == 7


async def test_connections_are_accepted_again_after_a_process_had_too_many_open_files(
    anyio_backend: str,
    listening: socket.socket,
    processes: tuple[Process, Process],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(acceptor, "ERROR_S", 0.01)
    loop, (soft, hard) = asyncio.get_running_loop(), resource.getrlimit(resource.RLIMIT_NOFILE)
    refused = asyncio.Event()
    monkeypatch.setattr(acceptor.log, "warning", lambda *_, **__: refused.set(), raising=False)
    with socket.socket() as client:
        client.setblocking(False)
        next_descriptor = os.dup(client.fileno())
        os.close(next_descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_descriptor, hard))
        try:
            await loop.sock_connect(client, listening.getsockname())
            await refused.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert await loop.sock_recv(client, 1) == b"+"
