"""One file over HTTP: entity tags, conditions, ranges, encodings and digests (RFC 9110, RFC 9530).

`Delivery` sends from disk, a block at a time: memory does not grow with the file. A condition that ends
in 304 or 412 is answered without touching the disk. It does not know models or devices.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from anyio.to_thread import run_sync
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.web.auth import Call
from service.web.conditional import Asked, Form, choose, forms, part, verdict

BLOCK = 256 * 1024
"""Read and handed to the server at once; so much of each transfer is in memory."""


class Delivery(Response):
    """Answers a GET or HEAD with the file of the digest `sha256`, or with `zstd`, the same file compressed.

    `find` says where the file of a digest is. `validators` go with every answer, 304 too; `headers` only with
    the file itself. What is asked for is read when it is sent: raises then what `find` raises, and
    HTTPException 406, 412 and 416.
    """

    def __init__(
        self,
        find: Callable[[str], Path],
        sha256: str,
        zstd: str | None,
        *,
        validators: Mapping[str, str],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__()
        self._find = find
        self._forms = forms(sha256, zstd)
        self._validators = validators
        self._about = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_by(Request(scope))
        form = choose(self._forms, asked)
        if form is None:
            offered = " or ".join(f.coding or "identity" for f in self._forms)
            raise HTTPException(406, f"this file can be had as {offered}, and Accept-Encoding refuses that")
        validators = {**self._validators, "ETag": form.etag}
        if (status := verdict(asked, form.etag)) is not None:
            await condition_answer(scope, status, validators)(scope, receive, send)
            return
        descriptor = await run_sync(self._open, form.blob)
        try:
            await self._send_file(descriptor, form, asked, validators, scope, receive, send)
        finally:
            os.close(descriptor)

    def _open(self, digest: str) -> int:
        try:
            return os.open(self._find(digest), os.O_RDONLY)
        except FileNotFoundError:
            self._find(digest)  # says so: it went between the two
            raise

    async def _send_file(
        self,
        descriptor: int,
        form: Form,
        asked: Asked,
        validators: dict[str, str],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        size = os.fstat(descriptor).st_size
        wanted = part(asked, form.etag, size) if scope["method"] == "GET" else None
        if wanted is not None and wanted.start >= wanted.stop:
            raise HTTPException(
                416,
                f"the file has {size} bytes, and the range begins behind them",
                {"Content-Range": f"bytes */{size}"},
            )
        start, stop = wanted or (0, size)
        headers = {
            **validators,
            **self._about,
            "Accept-Ranges": "bytes",
            "Content-Length": str(stop - start),
            "Repr-Digest": repr_digest(form.blob),
        }
        if form.coding is not None:
            headers["Content-Encoding"] = form.coding
        if wanted is not None:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        await send(
            {
                "type": "http.response.start",
                "status": 206 if wanted is not None else 200,
                "headers": [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()],
            }
        )
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
        else:
            await _send_blocks(descriptor, start, stop, receive, send)


async def _send_blocks(descriptor: int, start: int, stop: int, receive: Receive, send: Send) -> None:
    """Waits for the client between blocks (`send` does), and ends when it has gone."""
    if start == stop:
        await send({"type": "http.response.body", "body": b""})
        return
    gone = asyncio.create_task(_until_gone(receive))
    try:
        while start < stop and not gone.done():
            block = await run_sync(os.pread, descriptor, min(BLOCK, stop - start), start)
            if not block:
                raise OSError(f"the file ended {stop - start} bytes early")
            start += len(block)
            await send({"type": "http.response.body", "body": block, "more_body": start < stop})
    finally:
        gone.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def asked_by(request: Request) -> Asked:
    """The header fields that decide; those of one name are one list (RFC 9110, 5.3)."""

    def joined(name: str) -> str | None:
        found = request.headers.getlist(name)
        return ", ".join(found) if found else None

    return Asked(
        accept_encoding=joined("accept-encoding"),
        if_match=joined("if-match"),
        if_none_match=joined("if-none-match"),
        if_range=joined("if-range"),
        range=joined("range"),
    )


def condition_answer(scope: Scope, status: int, validators: Mapping[str, str]) -> Response:
    """The 304. Raises HTTPException for 412."""
    if status == 412:
        raise HTTPException(412, "If-Match does not name what is here now", {"ETag": validators["ETag"]})
    call: Call = scope["call"]
    call.quiet = True  # devices ask all day, most answers are this one, and a line costs more than it
    return Response(status_code=status, headers=dict(validators))


def repr_digest(sha256: str) -> str:
    """RFC 9530: of the whole representation, its content coding included, also in an answer of a part."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"
