"""Responses that send one file: conditions, ranges, content codings and digests (RFC 9110, RFC 9530).

`ConditionalFileResponse` streams from disk block by block, so the memory does not grow with the file.
Conditions that end in 304 or 412 are answered without reading the disk. Models and devices are not known
here.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from anyio.to_thread import run_sync
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.web.conditional import (
    ByteRange,
    ConditionalHeaders,
    Representation,
    choose_representation,
    precondition_response,
    representations,
    select_range,
)

BLOCK_BYTES = 256 * 1024
"""Read and passed to the server at once: the memory of one transfer."""


class ConditionalFileResponse(Response):
    """Sends the file with the digest `sha256`, or `zstd`, the same file compressed, to a GET or HEAD request.

    `path_of` returns the path of a digest's file. `validators` are headers of every response, also of a 304;
    `headers` only accompany the file. Sending raises what `path_of` raises, and HTTPException 406, 412 and
    416.
    """

    def __init__(
        self,
        path_of: Callable[[str], Path],
        sha256: str,
        zstd: str | None,
        *,
        validators: Mapping[str, str],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__()
        self._path_of = path_of
        self._available = representations(sha256, zstd)
        self._validators = validators
        self._file_headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_headers = ConditionalHeaders.of(scope)
        representation = choose_representation(self._available, request_headers)
        if representation is None:
            codings = " or ".join(r.coding or "identity" for r in self._available)
            raise HTTPException(406, f"this file is available as {codings}; Accept-Encoding excludes that")
        validators = {**self._validators, "ETag": representation.etag}
        if (short_response := precondition_response(scope, validators)) is not None:
            await short_response(scope, receive, send)
            return
        descriptor = await run_sync(self._open, representation.blob)
        try:
            size = os.fstat(descriptor).st_size
            part = _requested_range(scope, request_headers, representation, size)
            headers = validators | self._headers_of(representation, part, size)
            await send(
                {
                    "type": "http.response.start",
                    "status": 200 if part is None else 206,
                    "headers": [
                        (k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()
                    ],
                }
            )
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b""})
            else:
                await _send_blocks(descriptor, part or ByteRange(0, size), receive, send)
        finally:
            os.close(descriptor)

    def _open(self, digest: str) -> int:
        try:
            return os.open(self._path_of(digest), os.O_RDONLY)
        except FileNotFoundError:
            self._path_of(digest)  # raises its own error when the file was deleted in between
            raise

    def _headers_of(
        self, representation: Representation, part: ByteRange | None, size: int
    ) -> dict[str, str]:
        start, stop = part or ByteRange(0, size)
        headers = {
            **self._file_headers,
            "Accept-Ranges": "bytes",
            "Content-Length": str(stop - start),
            "Repr-Digest": repr_digest(representation.blob),
        }
        if representation.coding is not None:
            headers["Content-Encoding"] = representation.coding
        if part is not None:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return headers


def _requested_range(
    scope: Scope, headers: ConditionalHeaders, representation: Representation, size: int
) -> ByteRange | None:
    """Return the range of a GET, or None for the whole file. Raises HTTPException 416."""
    part = select_range(headers, representation.etag, size) if scope["method"] == "GET" else None
    if part is not None and part.start >= part.stop:
        raise HTTPException(
            416,
            f"the file has {size} bytes; the range starts after its end",
            {"Content-Range": f"bytes */{size}"},
        )
    return part


async def _send_blocks(descriptor: int, part: ByteRange, receive: Receive, send: Send) -> None:
    """Send `part` in blocks. `send` waits for the client; a disconnect ends the transfer."""
    position, stop = part
    if position == stop:
        await send({"type": "http.response.body", "body": b""})
        return
    disconnect = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        while position < stop and not disconnect.done():
            block = await run_sync(os.pread, descriptor, min(BLOCK_BYTES, stop - position), position)
            if not block:
                raise OSError(f"the file ended {stop - position} bytes early")
            position += len(block)
            await send({"type": "http.response.body", "body": block, "more_body": position < stop})
    finally:
        disconnect.cancel()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def repr_digest(sha256: str) -> str:
    """Return the Repr-Digest header (RFC 9530): of the whole representation, also in a 206 response."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"
