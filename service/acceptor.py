"""Accepts connections from a socket that several web processes share, so that each gets an equal part.

The kernel wakes every process that waits for the socket, and the first one accepts. An event loop that
accepts all it can starves the others: of 32 connections to four processes, two got all. Here a process
accepts one connection at a time, and leaves it to the others for a moment while it has more than they
(docs/adr/0038-web-processes-share-one-socket.md).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from service import telemetry
from service.process_group import ABSENT, ProcessGroup

DEFERRAL_S = 0.003
"""How long a process with more connections leaves a new one to the others, which may be busy or hang."""
ERROR_S = 1.0
"""Pause after an error such as too many open files. Other processes accept meanwhile."""
TOLERANCE = 4
"""A process accepts at once while it has up to this many connections, and an eighth, more than another.

Without it, clients that open a connection for each request would wait for deferrals (5 times longer).
"""

log = telemetry.logger(__name__)


class CountedConnections(set[Any]):
    """The open connections of this process, whose number the group shares until it is closed."""

    def __init__(self, group: ProcessGroup) -> None:
        super().__init__()
        self._group, self._is_closed = group, False

    def add(self, connection: Any) -> None:
        super().add(connection)
        self.share()

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        self.share()

    def share(self, starting: int = 0) -> int:
        """Share and return the number of connections, with those that are `starting`."""
        count = len(self) + starting
        self._group.set_connections(ABSENT if self._is_closed else count)
        return count

    def close(self) -> None:
        """From now on, the group leaves no connection to this process."""
        self._is_closed = True
        self.share()


class Acceptor:
    """Accepts connections on the running event loop until it is closed."""

    def __init__(
        self,
        listening: socket.socket,
        create_protocol: Callable[[], asyncio.Protocol],
        connections: CountedConnections,
        group: ProcessGroup,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening, self._create_protocol = listening, create_protocol
        self._connections, self._group = connections, group
        self._starting: set[asyncio.Task[None]] = set()  # accepted, not yet in `connections`
        self._timer: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self._listen()

    async def close(self) -> None:
        """Accept no more connections, and wait until those accepted are in `connections`.

        The socket stays open.
        """
        self._loop.remove_reader(self._listening)
        if self._timer is not None:
            self._timer.cancel()
        self._connections.close()
        await asyncio.gather(*self._starting, return_exceptions=True)

    def _listen(self) -> None:
        self._timer = None
        self._count()
        self._loop.add_reader(self._listening, self._on_connection)

    def _count(self) -> int:
        return self._connections.share(len(self._starting))

    def _on_connection(self) -> None:
        fewest = self._group.fewest_connections()
        if self._count() > fewest + fewest // 8 + TOLERANCE:
            self._pause(DEFERRAL_S, self._accept_deferred)
        else:
            self._accept()

    def _accept_deferred(self) -> None:
        self._listen()
        self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process accepted it, or the client is gone
        except OSError as error:
            log.warning("connection.not_accepted", error=str(error))
            self._pause(ERROR_S, self._listen)
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._serve(connection))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        self._count()

    async def _serve(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._create_protocol, connection)
        except OSError:  # the client is gone
            connection.close()

    def _pause(self, seconds: float, resume: Callable[[], None]) -> None:
        self._loop.remove_reader(self._listening)
        self._timer = self._loop.call_later(seconds, resume)
