"""Shadows: a version that answers calls too, off the caller's path, to compare it with the one that answered.

`offer` appends a call and its answer to a bounded queue. A thread decodes the body again, as a call of the
shadow would, so that a shadow with another signature refuses what it would refuse; it runs the first call of
a batch alone, to measure its time, and the others jointly. The figures are added to the database every
`FLUSH_S` seconds and at the end of the process.

The callers come first. The thread's share of the time falls to `BUSY_SHARE` when the process is busy, because
the event loop waits whenever the thread holds the interpreter's lock; calls that do not fit into the queue
are dropped and counted as shed. The shadow is loaded like any version, but
never evicts another one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from registry import db, traffic
from registry.errors import TriviumError, Unavailable, describe_error, summarize_error
from registry.traffic import ShadowResult
from service import telemetry
from service.online.call_formats import CallFormat
from service.runtime.pool import Pool
from service.runtime.snapshot import Snapshot, SnapshotTraffic

if TYPE_CHECKING:  # see service/startup.py
    from registry.rows import Outputs, Rows
    from registry.signature import Signature
    from service.runtime.loading import LoadedModel
    from service.runtime.model_cache import CacheEntry

MAX_CALLS = 256
MAX_BYTES = 16 * 2**20
"""Bounds of the queue."""
BATCH_CALLS, BATCH_ROWS = 64, 1024
"""Bounds of a step. One call may have more rows."""
STEP_S = 0.002
"""A longer step takes fewer calls the next time: the event loop waits while it runs."""
POLL_S, MAX_POLL_S = 0.02, 0.2
"""How often an empty queue is looked at, while calls come and later."""
FLUSH_S = 5.0
IDLE_SHARE, BUSY_SHARE = 0.5, 0.02
"""The thread's share of the time in an idle process, and in one whose event loop is `BUSY` of the time."""
BUSY = 0.6
MAX_PAUSE_S = 10.0
MEASURE_S = 0.2
RUN_S = 30.0
"""How long a joint call is repeated call by call after it failed."""
RETRY_LOAD_S = 30.0
STOP_S = 10.0
MAX_REFUSED, MAX_REFUSED_BYTES, BATCH_REFUSED = 100, 2**17, 8
"""Bounds of the queue of refused calls, and of a step."""

T = TypeVar("T")

log = telemetry.logger(__name__)


Key = tuple[int, int, int]
"""The event that set the shadow, the version that answered, and the shadow version."""


class SplitCall(NamedTuple):
    """A call of an alias with traffic, and the version that it was passed to."""

    traffic: SnapshotTraffic
    number: int
    call_format: CallFormat
    body: bytes
    seconds: float
    signature: Signature | None = None  # of the version, if it answered


class ShadowCall(NamedTuple):
    """A call that was answered, waiting for the answer of the shadow."""

    call: SplitCall
    outputs: Outputs
    rows: int
    bytes: int

    @property
    def key(self) -> Key:
        return key_of(self.call)


def key_of(call: SplitCall) -> Key:
    split = call.traffic
    assert split.shadow is not None
    assert split.shadow_id is not None
    return split.shadow_id, call.number, split.shadow


class RefusedCall(NamedTuple):
    """A call that a canary refused. `report` is called if the alias's version accepts it."""

    call: SplitCall
    report: Callable[[], object]


class DecodedCall(NamedTuple):
    """A `PendingCall` of `loading.LoadedModel.run_each`."""

    call: ShadowCall
    rows: Rows
    deadline: float

    def is_abandoned(self) -> bool:
        return False


class Shadows:
    """The shadows of a process. The event loop calls `offer` and `check`; a thread does the rest."""

    def __init__(self, snapshot: Snapshot, pool: Pool, sessions: db.Sessions) -> None:
        self._snapshot, self._pool, self._sessions = snapshot, pool, sessions
        self._calls: deque[ShadowCall] = deque()
        self._refused: deque[RefusedCall] = deque()
        self._bytes_in = self._bytes_out = (
            0  # the first is changed by the event loop, the second by the thread
        )
        self._shed: dict[tuple[str, Key], int] = {}  # rows; changed by the event loop only, never reset
        self._shed_counted: dict[tuple[str, Key], int] = {}
        self._figures: dict[tuple[str, Key], ShadowResult] = {}
        self._batch_calls, self._poll_s = BATCH_CALLS, POLL_S
        self._loads = _Loads(pool)
        self._throttle = _Throttle()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._flushed_at = time.monotonic()

    def offer(self, call: SplitCall, outputs: Outputs, rows: int) -> None:
        """Queue a call and its answer, or drop it."""
        size = len(call.body) + sum(array.nbytes for array in outputs.values())
        if len(self._calls) >= MAX_CALLS or self._bytes_in - self._bytes_out + size > MAX_BYTES:
            name = (call.traffic.model, key_of(call))
            self._shed[name] = self._shed.get(name, 0) + rows
            return
        self._bytes_in += size
        self._calls.append(ShadowCall(call, outputs, rows, size))
        if self._thread is None:
            self._start()

    def check(self, refused: RefusedCall) -> None:
        """Queue a call that a canary refused, or drop it."""
        if len(self._refused) < MAX_REFUSED and len(refused.call.body) <= MAX_REFUSED_BYTES:
            self._refused.append(refused)
            if self._thread is None:
                self._start()

    def stop(self) -> None:
        """Store the figures of the calls that were answered. Blocks; calls in the queue are dropped."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def _start(self) -> None:
        self._loads.loop = asyncio.get_running_loop()
        self._throttle.watch(threading.get_native_id())
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            try:
                pause = self.step()
            except Exception:
                log.exception("shadow.failed")
                pause = 1.0
        self.flush()

    def step(self) -> float:
        """Answer some calls of the queue, and return the seconds to wait before the next step."""
        if time.monotonic() - self._flushed_at >= FLUSH_S:
            self.flush()
        if not self._calls and not self._refused:
            self._poll_s = min(self._poll_s * 2, MAX_POLL_S)
            return self._poll_s
        self._poll_s = POLL_S
        start = time.perf_counter()
        for _ in range(min(len(self._refused), BATCH_REFUSED)):
            self._check(self._refused.popleft())
        for calls in self._take_batch().values():
            self._answer(calls)
        elapsed_s = time.perf_counter() - start
        if elapsed_s > STEP_S:
            self._batch_calls = max(self._batch_calls // 2, 1)
        else:
            self._batch_calls = min(self._batch_calls * 2, BATCH_CALLS)
        return self._throttle.pause(elapsed_s)

    def flush(self) -> None:
        """Add the figures to the database. What cannot be written is tried again at the next flush."""
        self._flushed_at = time.monotonic()
        for (model, key), rows in dict(self._shed).items():
            if new := rows - self._shed_counted.get((model, key), 0):
                self._shed_counted[model, key] = rows
                self._figures_of(model, key).shed += new
        for (model, key), result in list(self._figures.items()):
            try:
                with self._sessions.begin() as session:
                    traffic.add_result(session, key[0], result)
            except Exception as error:
                log.warning("shadow.not_stored", model=model, error=str(error))
                return
            del self._figures[model, key]
            _count(model, result)

    def _take_batch(self) -> dict[Key, list[ShadowCall]]:
        """Remove calls from the queue, and return them by what they compare."""
        batch: dict[Key, list[ShadowCall]] = {}
        calls = rows = 0
        while self._calls and calls < self._batch_calls and rows < BATCH_ROWS:
            call = self._calls.popleft()
            self._bytes_out += call.bytes
            batch.setdefault(call.key, []).append(call)
            calls, rows = calls + 1, rows + call.rows
        return batch

    def _answer(self, calls: list[ShadowCall]) -> None:
        """Answer calls that compare the same versions."""
        model, key = calls[0].call.traffic.model, calls[0].key
        figures = self._figures_of(model, key)
        try:
            entry = self._acquire(model, key[2])
        except TriviumError as error:
            for call in calls:
                _fail(figures, call, error)
            return
        if entry is None:  # it is being loaded
            figures.shed += sum(call.rows for call in calls)
            return
        try:
            _compare(entry.model, calls, figures)
        finally:
            self._pool.release(entry)

    def _check(self, refused: RefusedCall) -> None:
        """Report the call if the alias's version accepts it."""
        call = refused.call
        with suppress(TriviumError):
            entry = self._acquire(call.traffic.model, call.traffic.own)
            if entry is None:
                return
            try:
                loaded = entry.model
                rows = call.call_format.decode(loaded, call.body)
                _run(loaded, lambda: loaded.run(rows))
            finally:
                self._pool.release(entry)
            refused.report()

    def _acquire(self, model: str, number: int) -> CacheEntry[LoadedModel] | None:
        """Return a loaded version, None while it is being loaded. Raises what its load raised."""
        version = self._snapshot.resolve(model, number=number)
        entry = self._pool.acquire_loaded(version.id)
        if entry is None:
            self._loads.start(version.id)
        return entry

    def _figures_of(self, model: str, key: Key) -> ShadowResult:
        figures = self._figures.get((model, key))
        if figures is None:
            figures = self._figures[model, key] = ShadowResult(key[1], key[2])
        return figures


class _Loads:
    """Loads of versions for shadows, which run while the thread continues."""

    def __init__(self, pool: Pool) -> None:
        self.loop: asyncio.AbstractEventLoop
        self._pool = pool
        self._running: dict[int, Future[None]] = {}
        self._failed: dict[int, tuple[float, TriviumError]] = {}  # when to try again, and the reason

    def start(self, version_id: int) -> None:
        """Start the load of a version, unless it is running. Raises the error of one that failed lately."""
        if version_id in self._failed:
            again_at, reason = self._failed[version_id]
            if time.monotonic() < again_at:
                raise reason
            del self._failed[version_id]
        load = self._running.get(version_id)
        if load is None:
            coroutine = self._pool.load_spare(version_id)
            self._running[version_id] = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        elif load.done():
            del self._running[version_id]
            if (error := load.exception()) is not None:
                reason = error if isinstance(error, TriviumError) else Unavailable(describe_error(error))
                self._failed[version_id] = (time.monotonic() + RETRY_LOAD_S, reason)
                raise reason


class _Throttle:
    """The share of the time that the thread may use."""

    def __init__(self) -> None:
        self._busy = 0.0
        self._schedstat = Path("/proc/self/schedstat")
        self._measured: tuple[float, float, float] | None = None

    def watch(self, thread_id: int) -> None:
        """Measure the thread of the event loop too."""
        self._schedstat = Path(f"/proc/self/task/{thread_id}/schedstat")

    def pause(self, elapsed_s: float) -> float:
        """Return how long to wait after a step of this length. Called by the shadows' thread only."""
        usage = self._usage()
        self._measured = self._measured or usage
        wall, *used = (now - before for now, before in zip(usage, self._measured, strict=True))
        if wall >= MEASURE_S:
            self._busy, self._measured = max(used) / wall, usage
        load = min(self._busy / BUSY, 1.0)
        share = IDLE_SHARE + (BUSY_SHARE - IDLE_SHARE) * load
        return min(elapsed_s * (1 / share - 1), MAX_PAUSE_S)

    def _usage(self) -> tuple[float, float, float]:
        """Return the time, the CPU time of the process's other threads, and what the event loop needed.

        The last is how long its thread ran, or waited for a core: on a busy machine, a thread that uses half
        of a core may need all of it. Only Linux knows it.
        """
        others = time.process_time() - time.thread_time()
        try:
            running_ns, waiting_ns, _ = self._schedstat.read_text().split()
        except (OSError, ValueError):
            return time.monotonic(), others, 0.0
        return time.monotonic(), others, (int(running_ns) + int(waiting_ns)) / 1e9


def _compare(loaded: LoadedModel, calls: list[ShadowCall], figures: ShadowResult) -> None:
    """Let the shadow answer the calls, the first one alone, and compare the answers."""
    from service.runtime import agreement  # imports numpy, which is not imported before the first model

    start = time.perf_counter()
    first = _decoded(loaded, calls[:1], figures)
    answers = _run(loaded, lambda: loaded.run_each(first)) if first else []
    if first and not isinstance(answers[0], Exception):
        traffic.add_latency(figures.shadow_latency, time.perf_counter() - start)
    others = _decoded(loaded, calls[1:], figures)
    answers += _run(loaded, lambda: loaded.run_each(others)) if others else []
    expected, actual, compared = [], [], []
    for decoded, answer in zip(first + others, answers, strict=True):
        if isinstance(answer, Exception):
            _fail(figures, decoded.call, answer)
            continue
        compared.append(decoded.call)
        expected.append(decoded.call.outputs)
        actual.append(answer)
    if not compared:
        return
    try:
        first_call, signature = compared[0].call, loaded.codec.signature
        other_columns = agreement.other_columns(first_call.signature or signature, signature)
        result = agreement.compare(expected, actual, other_columns)
    except Exception as error:
        for call in compared:
            _fail(figures, call, error)
        return
    figures.rows += result.rows
    figures.agreed += result.agreed
    figures.difference_sum += result.difference_sum
    figures.largest_difference = max(figures.largest_difference, result.largest_difference)
    for call in compared:
        traffic.add_latency(figures.latency, call.call.seconds)


def _decoded(loaded: LoadedModel, calls: list[ShadowCall], figures: ShadowResult) -> list[DecodedCall]:
    decoded, deadline = [], time.monotonic() + RUN_S
    for call in calls:
        try:
            rows = call.call.call_format.decode(loaded, call.call.body)
        except Exception as error:
            _fail(figures, call, error)
            continue
        decoded.append(DecodedCall(call, rows, deadline))
    return decoded


def _run(loaded: LoadedModel, function: Callable[[], T]) -> T:
    """Call a function of the model: in its own thread if it takes one call at a time."""
    return function() if loaded.kind == "onnx" else loaded.threads.submit(function).result()


def _fail(figures: ShadowResult, call: ShadowCall, error: Exception) -> None:
    figures.failed += call.rows
    figures.last_error = summarize_error(error)


def _count(model: str, result: ShadowResult) -> None:
    rows = {
        "agreed": result.agreed,
        "differed": result.rows - result.agreed,
        "failed": result.failed,
        "shed": result.shed,
    }
    for outcome, count in rows.items():
        if count:
            telemetry.SHADOW_ROWS.labels(model, str(result.shadow_version), outcome).inc(count)
