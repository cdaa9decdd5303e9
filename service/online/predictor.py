"""Predictions, without a transport: from a call to its answer. `hotpath` serves them over HTTP.

A call uses no database: it resolves its version in the snapshot. Small bodies for cheap models are decoded,
run and encoded on the event loop; all others in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar, TypeVarTuple, Unpack

from registry.errors import DeadlineExceeded, NotFound, NotReady, Unavailable
from service import telemetry
from service.online.call_formats import Answer, CallFormat
from service.runtime.pool import Pool
from service.runtime.snapshot import Snapshot, SnapshotVersion

if TYPE_CHECKING:  # see service/startup.py
    from registry.rows import Rows
    from service.runtime.loading import LoadedModel

T = TypeVar("T")
Args = TypeVarTuple("Args")

INLINE_BYTES = 16 * 1024
"""Larger bodies are decoded in a thread: 16 KB of JSON take about 0.1 ms."""


class Target(NamedTuple):
    """What answers a call."""

    version: SnapshotVersion


class Prediction(NamedTuple):
    answer: Answer
    loaded: LoadedModel
    id: str


class Predictor:
    """Answers calls with the loaded models of `pool`."""

    def __init__(self, snapshot: Snapshot, pool: Pool, executor: Executor, deadline_s: float) -> None:
        self._snapshot = snapshot
        self._pool = pool
        self._executor = executor
        self._deadline_s = deadline_s + 0.2  # a running call reports its own deadline first

    async def resolve(
        self, model: str, alias: str | None, number: int | None, headers: Mapping[bytes, bytes]
    ) -> Target:
        """Return what answers a call of a version by number, or by alias (None: `champion`).

        `headers` are those of the request, or gRPC metadata, by their names in lower case. Raises `NotFound`,
        `NotReady`, `Unavailable`.
        """
        try:
            return Target(self._snapshot.resolve(model, alias, number))
        except (NotFound, NotReady, Unavailable):  # the snapshot may be older than what the caller has read
            resolve = partial(self._snapshot.resolve, model, alias, number)
            return Target(await self._snapshot.find(resolve))

    async def predict(
        self, target: Target, call_format: CallFormat, body: bytes, deadline: float | None = None
    ) -> Prediction:
        """Return the answer. `deadline`: time of `time.monotonic` after which the caller no longer waits.

        Raises `Invalid`, `Unavailable`, `DeadlineExceeded`.
        """
        start, prediction_id = time.perf_counter(), telemetry.make_id("pred")
        entry = await self._pool.acquire(target.version.id)
        loaded = entry.model
        try:
            answer, rows = await self._answer(loaded, call_format, body, prediction_id)
        finally:
            self._pool.release(entry)
        loaded.meter.observe(time.perf_counter() - start, rows)
        return Prediction(answer, loaded, prediction_id)

    async def _answer(
        self, loaded: LoadedModel, call_format: CallFormat, body: bytes, prediction_id: str
    ) -> tuple[Answer, int]:
        """Return the answer and the number of rows."""
        if call_format.inline_body and len(body) <= INLINE_BYTES:
            rows = call_format.decode(loaded, body)
            if call_format.inline_answer and loaded.is_cheap(len(rows)):
                return _run(loaded, rows, call_format, prediction_id), len(rows)
            return await self._in_thread(loaded, _run, loaded, rows, call_format, prediction_id), len(rows)
        return await self._in_thread(loaded, _decode_and_run, loaded, body, call_format, prediction_id)

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
