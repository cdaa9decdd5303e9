"""Predictions, without a transport: from a call to its answer. `hotpath` serves them over HTTP.

A call uses no database: it resolves its version in the snapshot. Small bodies for cheap models are decoded,
run and encoded on the event loop. Expensive calls go through the queue of their model (`batching`). Large
bodies and tables are decoded and encoded in threads that no expensive call uses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar, TypeVarTuple, Unpack

from registry.aliases import CHAMPION
from registry.errors import DeadlineExceeded, NotFound, NotReady, Unavailable
from service import telemetry
from service.online.batching import AwaitDeparture, ModelQueues
from service.online.call_formats import Answer, CallFormat
from service.online.shadow import SplitCall
from service.online.traffic_split import SplitCalls, select_version
from service.prediction_log.recorder import Recorder
from service.runtime.pool import Pool
from service.runtime.snapshot import Snapshot, SnapshotLog, SnapshotTraffic, SnapshotVersion

if TYPE_CHECKING:  # see service/startup.py
    from registry.rows import Outputs, Rows
    from service.runtime.loading import LoadedModel
    from service.runtime.model_cache import CacheEntry

T = TypeVar("T")
Args = TypeVarTuple("Args")

INLINE_BYTES = 16 * 1024
"""Larger bodies are decoded in a thread: 16 KB of JSON take about 0.1 ms."""
INLINE_ROWS = 256
"""Longer answers of expensive models are encoded in a thread."""
CHILD_S = 0.2
"""How much longer than its process a call with the server's own deadline waits, to report what ended it."""


class Target(NamedTuple):
    """What answers a call."""

    version: SnapshotVersion
    alias: str | None = None  # None: the call names the version
    log: SnapshotLog | None = None  # None: the call is not recorded
    request_id: bytes | None = None  # the caller's, of a call that is recorded
    traffic: SnapshotTraffic | None = None  # of the alias, if other versions answer too
    is_random: bool = False  # resolved again, the same call may get another version


class Answered(NamedTuple):
    """The rows of a call, and their answer."""

    rows: Rows
    outputs: Outputs
    answer: Answer


class Prediction(NamedTuple):
    answer: Answer
    loaded: LoadedModel
    id: str


class Predictor:
    """Answers calls with the loaded models of `pool`."""

    def __init__(
        self,
        snapshot: Snapshot,
        pool: Pool,
        executor: Executor,
        deadline_s: float,
        recorder: Recorder,
        split_calls: SplitCalls,
    ) -> None:
        self._snapshot = snapshot
        self._pool = pool
        self._executor = executor
        self._recorder = recorder
        self._split_calls = split_calls
        self._deadline_s = deadline_s
        self._queues = ModelQueues()

    async def resolve(
        self, model: str, alias: str | None, number: int | None, headers: Mapping[bytes, bytes]
    ) -> Target:
        """Return what answers a call of a version by number, or by alias (None: `champion`).

        `headers` are those of the request, or gRPC metadata, by their names in lower case. Raises `NotFound`,
        `NotReady`, `Unavailable`.
        """
        try:
            return self.resolve_now(model, alias, number, headers)
        except (NotFound, NotReady, Unavailable):  # the snapshot may be older than what the caller has read
            return await self._snapshot.find(partial(self.resolve_now, model, alias, number, headers))

    def resolve_now(
        self, model: str, alias: str | None, number: int | None, headers: Mapping[bytes, bytes]
    ) -> Target:
        """Return what `resolve` returns, from the snapshot as it is."""
        state = self._snapshot.state
        called_alias = (alias or CHAMPION) if number is None else None
        traffic, is_random = None, False
        if called_alias is not None and state.traffic:
            traffic = state.traffic.get((model, called_alias))
        if traffic is None:
            version = self._snapshot.resolve(model, alias, number)
        else:
            number, is_random = select_version(traffic, headers)
            version = state.models[model].versions[number]  # one that cannot answer fails in `predict`
        entry = state.models.get(model)
        if entry is None or entry.log is None:
            return Target(version, called_alias, None, None, traffic, is_random)
        request_id = headers.get(b"x-request-id")
        return Target(version, called_alias, entry.log, request_id, traffic, is_random)

    async def predict(
        self,
        target: Target,
        call_format: CallFormat,
        body: bytes,
        deadline: float | None = None,
        departure: AwaitDeparture | None = None,
    ) -> Prediction:
        """Return the answer. `deadline`: time of `time.monotonic` after which the caller no longer waits.

        A deadline after the server's own is replaced by that. `departure` ends the call when its caller
        leaves, while it is queued. Raises `Invalid`, `Unavailable`, `DeadlineExceeded`.
        """
        if target.traffic is None:
            return await self._predict(target, call_format, body, deadline, departure)
        start = time.perf_counter()
        try:
            return await self._predict(target, call_format, body, deadline, departure)
        except (Exception, asyncio.CancelledError) as error:
            seconds = time.perf_counter() - start
            call = SplitCall(target.traffic, target.version.number, call_format, body, seconds)
            self._split_calls.failed(call, error, deadline)
            raise

    async def _predict(
        self,
        target: Target,
        call_format: CallFormat,
        body: bytes,
        deadline: float | None,
        departure: AwaitDeparture | None,
    ) -> Prediction:
        start, prediction_id = time.perf_counter(), telemetry.make_id("pred")
        version_id, loading_s = target.version.id, 0.0
        if (entry := self._pool.acquire_loaded(version_id)) is None:
            entry = await self._load(version_id, deadline)
            loading_s = time.perf_counter() - start
        loaded = entry.model
        try:
            answered = _run_inline(loaded, body, call_format, prediction_id)
            if not isinstance(answered, Answered):
                limit = self._limit(deadline)
                async with self._until(limit, deadline, "it is busy with other calls, or this one is slow"):
                    answered = await self._run_queued(
                        loaded, answered, body, call_format, prediction_id, limit, departure
                    )
        except DeadlineExceeded:
            telemetry.MISSED_DEADLINES.labels(loaded.name, str(loaded.number)).inc()
            raise
        finally:
            self._pool.release(entry)
        return self._finish(target, call_format, body, loaded, answered, prediction_id, start, loading_s)

    def predict_now(self, target: Target, call_format: CallFormat, body: bytes) -> Prediction | None:
        """Return the answer of a call that needs no thread and no wait, None for any other.

        A call without an answer is not counted. Raises `Invalid`.
        """
        start, prediction_id = time.perf_counter(), telemetry.make_id("pred")
        if (entry := self._pool.acquire_loaded(target.version.id)) is None:
            return None
        try:
            if not entry.model.runs_at_once(1):  # it would be decoded twice
                return None
            answered = _run_inline(entry.model, body, call_format, prediction_id)
        finally:
            self._pool.release(entry)
        if not isinstance(answered, Answered):
            return None
        return self._finish(target, call_format, body, entry.model, answered, prediction_id, start)

    def _finish(
        self,
        target: Target,
        call_format: CallFormat,
        body: bytes,
        loaded: LoadedModel,
        answered: Answered,
        prediction_id: str,
        start: float,
        loading_s: float = 0.0,
    ) -> Prediction:
        """Count and record an answered call, which began at the time `start` of `time.perf_counter`.

        The load of the version that it waited for is not its latency, by which canaries are judged.
        """
        seconds = time.perf_counter() - start
        loaded.meter.observe(seconds, len(answered.rows))
        if target.traffic is not None:
            signature = loaded.codec.signature
            call = SplitCall(target.traffic, loaded.number, call_format, body, seconds - loading_s, signature)
            self._split_calls.answered(call, answered.outputs, len(answered.rows))
        if target.log is not None:
            self._recorder.record(
                target.log,
                loaded,
                prediction_id,
                target.alias,
                target.request_id,
                answered.rows,
                answered.outputs,
            )
        return Prediction(answered.answer, loaded, prediction_id)

    async def _run_queued(
        self,
        loaded: LoadedModel,
        rows: Rows | None,
        body: bytes,
        call_format: CallFormat,
        prediction_id: str,
        deadline: float,
        departure: AwaitDeparture | None,
    ) -> Answered:
        """Answer in threads, or in a joint call. `rows` are those of `body`, None: not yet decoded."""
        if rows is None:
            self._queues.require_space(loaded)
            decoded = await self._in_thread(_decode, loaded, body, call_format, prediction_id)
            if isinstance(decoded, Answered):
                return decoded
            rows = decoded
        outputs = await self._queues.run(loaded, rows, deadline, departure)
        if call_format.inline_answer and len(rows) <= INLINE_ROWS:
            return Answered(rows, outputs, call_format.encode(loaded, outputs, prediction_id))
        answer = await self._in_thread(call_format.encode, loaded, outputs, prediction_id)
        return Answered(rows, outputs, answer)

    async def _in_thread(self, function: Callable[[Unpack[Args]], T], *args: *Args) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    async def _load(self, version_id: int, deadline: float | None) -> CacheEntry[LoadedModel]:
        limit = self._limit(deadline)
        async with self._until(limit, deadline, "it is still being loaded"):
            return await self._pool.acquire(version_id)

    def _limit(self, deadline: float | None) -> float:
        """Return the time of `time.monotonic` at which a call ends."""
        limit = time.monotonic() + self._deadline_s + CHILD_S
        return limit if deadline is None else min(deadline, limit)

    @asynccontextmanager
    async def _until(self, limit: float, deadline: float | None, reason: str) -> AsyncIterator[None]:
        """Raises `DeadlineExceeded` at the time `limit`."""
        try:
            async with asyncio.timeout(limit - time.monotonic()):
                yield
        except TimeoutError as error:
            within = (
                "by the deadline of the request" if limit == deadline else f"within {self._deadline_s:g} s"
            )
            raise DeadlineExceeded(f"the model did not answer {within}: {reason}") from error


def _run_inline(
    loaded: LoadedModel, body: bytes, call_format: CallFormat, prediction_id: str
) -> Answered | Rows | None:
    """Return the answer if the event loop can wait for it, otherwise the rows, None: not decoded."""
    if not call_format.inline_body or len(body) > INLINE_BYTES:
        return None
    rows = call_format.decode(loaded, body)
    if call_format.inline_answer and loaded.runs_at_once(len(rows)):
        return _run(loaded, rows, call_format, prediction_id)
    return rows


def _run(loaded: LoadedModel, rows: Rows, call_format: CallFormat, prediction_id: str) -> Answered:
    outputs = loaded.run(rows)
    return Answered(rows, outputs, call_format.encode(loaded, outputs, prediction_id))


def _decode(loaded: LoadedModel, body: bytes, call_format: CallFormat, prediction_id: str) -> Rows | Answered:
    """Return the rows, or their answer if the model is cheap: that needs no other thread."""
    rows = call_format.decode(loaded, body)
    return _run(loaded, rows, call_format, prediction_id) if loaded.runs_at_once(len(rows)) else rows
