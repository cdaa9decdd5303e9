"""Decodes compressed request bodies: `Content-Encoding` gzip, deflate and zstd (RFC 9110, section 8.4).

A body is decoded in blocks while it arrives, so a small body that decodes to a large one is rejected before
it takes memory.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import Callable
from typing import Protocol

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from registry.errors import invalid_field

BLOCK_BYTES = 1 << 20
"""The app receives blocks of up to this size."""


class Decompressor(Protocol):
    """The interface of the decompressors in `compression.zstd` and `bz2`."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Inflate:
    """zlib's decompressor with that interface. `wbits` is the format: see zlib."""

    def __init__(self, wbits: int) -> None:
        self._inflate = zlib.decompressobj(wbits)

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)


class _Deflate:
    """`deflate` is the zlib format (RFC 9110, 8.4.1.2); some clients send raw deflate data."""

    eof, unused_data = False, b""

    def __init__(self) -> None:
        self._start = b""
        self._inflate: _Inflate | None = None

    def decompress(self, data: bytes, max_length: int) -> bytes:
        if self._inflate is None:
            self._start += data
            if len(self._start) < 2:
                return b""
            header = int.from_bytes(self._start[:2])
            is_zlib = self._start[0] & 0x0F == zlib.DEFLATED and header % 31 == 0  # RFC 1950, 2.2
            self._inflate, data = _Inflate(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS), self._start
        content = self._inflate.decompress(data, max_length)
        self.eof, self.unused_data = self._inflate.eof, self._inflate.unused_data
        return content


def _zstd() -> Decompressor:
    if sys.version_info >= (3, 14):
        from compression.zstd import ZstdDecompressor
    else:
        from backports.zstd import ZstdDecompressor  # few requests are compressed: not loaded at the start
    decompressor: Decompressor = ZstdDecompressor()
    return decompressor


DECOMPRESSORS: dict[str, Callable[[], Decompressor]] = {
    "gzip": lambda: _Inflate(16 + zlib.MAX_WBITS),
    "x-gzip": lambda: _Inflate(16 + zlib.MAX_WBITS),
    "deflate": _Deflate,
    "zstd": _zstd,
}
ACCEPTED = "gzip, deflate, zstd"


class DecodedBody:
    """The `receive` of a request whose body is compressed. After the body it returns what the server's does.

    `receive` is the server's. Calling it raises HTTPException 415 for an unknown coding, 413 when the decoded
    body exceeds `limit` bytes, and `Invalid` when it cannot be decoded or ends early.
    """

    def __init__(self, receive: Receive, coding: str, limit: int) -> None:
        if coding not in DECOMPRESSORS:
            message = f"the Content-Encoding {coding!r} is not supported; use {ACCEPTED}, or none"
            raise HTTPException(415, message, {"Accept-Encoding": ACCEPTED})
        self._receive, self._coding, self._limit = receive, coding, limit
        self._decompressor = DECOMPRESSORS[coding]()
        self._input = b""
        self._has_input, self._has_more, self._has_received, self._is_complete = False, True, False, False
        self._decoded = 0

    async def __call__(self) -> Message:
        while True:
            if self._has_input:
                block = self._decompress()
                if block:
                    await asyncio.sleep(0)  # other requests run between two blocks
                    return {"type": "http.request", "body": block, "more_body": True}
            elif self._is_complete:
                return await self._receive()
            elif not self._has_more:
                if self._has_received and not self._decompressor.eof:
                    raise self._invalid("ends early")
                self._is_complete = True
                return {"type": "http.request", "body": b"", "more_body": False}
            else:
                message = await self._receive()
                if message["type"] != "http.request":
                    return message
                self._input = message.get("body", b"")
                self._has_input = bool(self._input)
                self._has_received |= self._has_input
                self._has_more = message.get("more_body", False)

    def _decompress(self) -> bytes:
        """Return the next block, or nothing when the input is used up."""
        if self._decompressor.eof:  # another member or frame follows
            data = self._decompressor.unused_data + self._input
            if not data:
                self._has_input = False
                return b""
            self._decompressor, self._input = DECOMPRESSORS[self._coding](), data
        data, self._input = self._input, b""
        try:
            block = self._decompressor.decompress(data, BLOCK_BYTES)
        except Exception as error:  # zlib.error, ZstdError, EOFError
            raise self._invalid("cannot be decoded") from error
        self._decoded += len(block)
        if self._decoded > self._limit:
            raise HTTPException(413, f"the decoded request body is larger than {self._limit} bytes")
        if not block and not (self._decompressor.eof and self._decompressor.unused_data):
            self._has_input = False
        return block

    def _invalid(self, fault: str) -> Exception:
        message = f"the body {fault} as {self._coding}"
        return invalid_field("Content-Encoding", message, f"a complete {self._coding} stream", detail=message)
