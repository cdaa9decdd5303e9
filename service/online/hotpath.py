"""Predictions: raw ASGI in front of FastAPI, because a FastAPI route costs more time than a small model.

`POST /v1/models/{name}/predict[?alias=]` and `POST /v1/models/{name}/versions/{v}/predict`, and the same for
`/v1/.../invocations` and `/v2/.../infer`, which differ only in their format (`call_formats.py`). A request
uses no database: it resolves its version in the snapshot. Small bodies for cheap models are decoded, run and
encoded on the event loop; all others in a thread.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple, Unpack
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from registry.errors import DeadlineExceeded, invalid_field
from registry.names import check_name
from service import telemetry
from service.online.call_formats import DOORS, Answer, CallFormat
from service.runtime.pool import Pool
from service.runtime.snapshot import Snapshot, SnapshotVersion
from service.web.auth import denial_reason
from service.web.request_context import RequestContext

if TYPE_CHECKING:  # see service/startup.py
    from registry.rows import Rows
    from service.runtime.loading import LoadedModel

T = TypeVar("T")
Args = TypeVarTuple("Args")

INLINE_BYTES = 16 * 1024
"""Larger bodies are decoded in a thread: 16 KB of JSON take about 0.1 ms."""

_PATH = re.compile(r"(/v[12])/models/([^/]+)(?:/versions/([^/]+))?(/predict|/invocations|/infer)")
_NUMBER = re.compile(r"[1-9][0-9]{0,9}")


class HotPath:
    def __init__(
        self, app: ASGIApp, snapshot: Snapshot, pool: Pool, executor: Executor, deadline_s: float
    ) -> None:
        self._app = app
        self._snapshot = snapshot
        self._pool = pool
        self._executor = executor
        self._deadline_s = deadline_s + 0.2  # a running call reports its own deadline first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (match := _PATH.fullmatch(scope["path"])) is None:
            await self._app(scope, receive, send)
            return
        api, name, number, action = match.groups()
        if (door := DOORS.get((api, action, number is not None))) is None:
            await self._app(scope, receive, send)
            return
        call: RequestContext = scope["context"]
        call.route = door.route
        if scope["method"] != "POST":
            raise HTTPException(405, f"{action[1:]} takes POST", headers={"Allow": "POST"})
        if (reason := denial_reason(call.key, "predict", model=name)) is not None:
            raise HTTPException(403, reason)
        version = await self._resolve(scope, name, number)
        call_format = door.select_format(scope)
        body = await _read(receive)
        start, prediction_id = time.perf_counter(), telemetry.make_id("pred")
        answer, loaded, rows = await self._predict(version, body, call_format, prediction_id)
        loaded.seconds.observe(time.perf_counter() - start)
        loaded.rows.inc(rows)
        call.quiet = True
        await _send(send, answer, loaded, prediction_id)

    async def _resolve(self, scope: Scope, name: str, number: str | None) -> SnapshotVersion:
        alias = _alias(scope["query_string"], number is not None) if scope["query_string"] else None
        if number is None:
            return await self._snapshot.find(partial(self._snapshot.resolve, name, alias))
        if _NUMBER.fullmatch(number) is None:
            raise invalid_field(
                "version",
                "not a version number",
                "an integer from 1",
                detail=f"version {number!r} is not an integer from 1",
            )
        return await self._snapshot.find(partial(self._snapshot.resolve, name, number=int(number)))

    async def _predict(
        self, version: SnapshotVersion, body: bytes, call_format: CallFormat, prediction_id: str
    ) -> tuple[Answer, LoadedModel, int]:
        entry = await self._pool.acquire(version.id)
        loaded = entry.model
        try:
            if call_format.inline_body and len(body) <= INLINE_BYTES:
                rows = call_format.decode(loaded, body)
                if call_format.inline_answer and loaded.is_cheap(len(rows)):
                    return _run(loaded, rows, call_format, prediction_id), loaded, len(rows)
                answer = await self._in_thread(loaded, _run, loaded, rows, call_format, prediction_id)
                return answer, loaded, len(rows)
            answer, count = await self._in_thread(
                loaded, _decode_and_run, loaded, body, call_format, prediction_id
            )
            return answer, loaded, count
        finally:
            self._pool.release(entry)

    async def _in_thread(self, loaded: LoadedModel, function: Callable[[Unpack[Args]], T], *args: *Args) -> T:
        loop = asyncio.get_running_loop()
        if loaded.thread is None:
            return await loop.run_in_executor(self._executor, function, *args)
        try:
            async with asyncio.timeout(self._deadline_s):  # of the wait for the thread; the call has its own
                return await loop.run_in_executor(loaded.thread, function, *args)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the model did not answer within {self._deadline_s:g} s: it is busy with other calls"
            ) from error


def _run(loaded: LoadedModel, rows: Rows, call_format: CallFormat, prediction_id: str) -> Answer:
    return call_format.encode(loaded, loaded.run(rows), prediction_id)


def _decode_and_run(
    loaded: LoadedModel, body: bytes, call_format: CallFormat, prediction_id: str
) -> tuple[Answer, int]:
    rows = call_format.decode(loaded, body)
    return _run(loaded, rows, call_format, prediction_id), len(rows)


def _alias(query: bytes, numbered: bool) -> str | None:
    """Return the `alias` of the query. Unknown parameters are rejected, as are unknown fields.

    `numbered`: the path names the version, so `alias` is unknown too.
    """
    alias = None
    for key, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if key != "alias" or numbered:
            raise invalid_field(
                key,
                "unknown query parameter",
                None if numbered else "alias",
                detail=f"unknown query parameter {key!r}",
            )
        if alias is not None:
            raise invalid_field("alias", "set twice", "one", detail="alias is set twice")
        alias = check_name(value, "alias")
    return alias


async def _read(receive: Receive) -> bytes:
    """Read the whole body; `BodyLimits` bounds its size."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise HTTPException(400, "the client disconnected")
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        return body
    parts = [body]
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "the client disconnected")
        parts.append(message.get("body", b""))
    return b"".join(parts)


async def _send(send: Send, answer: Answer, loaded: LoadedModel, prediction_id: str) -> None:
    headers = [
        *answer.headers,
        (b"content-length", b"%d" % len(answer.body)),
        *loaded.headers,  # they replace the fields of a JSON answer that a table does not have
        (b"x-prediction-id", prediction_id.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
