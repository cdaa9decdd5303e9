"""A connection to an ASGI application through uvicorn's HTTP protocol, in this process, without a socket."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.server import ServerState


class Wire(asyncio.Transport):
    """`sent` is what the application answered since it was cleared."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__()
        self.sent, self.closed = b"", False
        if not config.loaded:
            config.load()
        self.protocol: Any = config.http_protocol_class(  # type: ignore[call-arg]
            config=config, server_state=ServerState(), app_state={}
        )
        self.protocol.connection_made(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    async def exchange(self, *chunks: bytes) -> bytes:
        """Send the chunks one after another; return all that was sent."""
        for chunk in chunks:
            self.protocol.data_received(chunk)
            await asyncio.sleep(0)
        while self.protocol.tasks:
            await asyncio.wait(self.protocol.tasks)
        return self.sent
