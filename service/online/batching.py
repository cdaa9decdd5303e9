"""Queues of model calls: concurrent requests for an expensive model become one call of its runtime.

A request waits until the requests that arrive in the same turn of the event loop are in the queue too, and
while all `slots` of its model are taken; there is no timer. What is queued then is joined into one call, up
to the rows that the measured cost of the model allows (`runtime/call_cost.py`). A short joint call runs on
the event loop. Any other takes a slot and runs in one of the model's own threads, so a slow model delays no
other.

A joint call that fails is repeated for each request alone (`LoadedModel.run_each`). A request leaves the
queue when its caller leaves or its deadline passes; a running call cannot be stopped, and holds its slot
until it ends.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from registry.errors import DeadlineExceeded, Overloaded, Unavailable
from service import telemetry

if TYPE_CHECKING:  # see service/startup.py
    from registry.rows import Outputs, Rows
    from service.runtime.loading import LoadedModel

QUEUE_S = 0.75
"""A queue is full when its calls would take longer than this: a second after an overload it is empty."""
MIN_QUEUE = 4
"""Calls that a queue holds in any case, also of a model that takes a second for each."""
MAX_QUEUED_ROWS = 100_000

AwaitDeparture = Callable[[], Awaitable[object]]
"""Wait until the caller has left, and raise the error that ends its call."""


class ModelQueues:
    """The queues of the loaded models. Used on one event loop."""

    def __init__(self) -> None:
        # weak: a model is freed with its last user, and its queue with it
        self._queues: WeakKeyDictionary[LoadedModel, ModelQueue] = WeakKeyDictionary()

    async def run(
        self, loaded: LoadedModel, rows: Rows, deadline: float, departure: AwaitDeparture | None = None
    ) -> Outputs:
        """Return the answers to `rows`. `deadline` is a time of `time.monotonic`.

        `departure` is awaited only while the call is queued. Raises what the model's `run` raises, what
        `departure` raises, `DeadlineExceeded` and `Overloaded`.
        """
        queue = self._queues.get(loaded)
        if queue is None:
            queue = self._queues[loaded] = ModelQueue(loaded)
        return await queue.run(_Call(loaded, rows, deadline, departure))

    def require_space(self, loaded: LoadedModel) -> None:
        """Raises `Overloaded` if the model's queue is full, before a body is decoded."""
        if (queue := self._queues.get(loaded)) is not None:
            queue.require_space(loaded, 0)


class _Call:
    """One request in a queue. `answer` is cancelled when the caller no longer waits for it."""

    __slots__ = ("_departure", "_watcher", "answer", "deadline", "loaded", "rows")

    def __init__(
        self, loaded: LoadedModel, rows: Rows, deadline: float, departure: AwaitDeparture | None
    ) -> None:
        self.loaded, self.rows, self.deadline = loaded, rows, deadline
        self.answer: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
        self._departure = departure
        self._watcher: asyncio.Future[object] | None = None

    def watch(self) -> None:
        """Fail the call when its caller leaves."""
        if self._departure is not None and self._watcher is None:
            self._watcher = asyncio.ensure_future(self._departure())
            self._watcher.add_done_callback(self._on_departure)

    def is_abandoned(self) -> bool:
        return self.answer.done()

    def stop_watching(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    def finish(self, result: Outputs | BaseException) -> None:
        if self.answer.done():
            return
        if isinstance(result, BaseException):
            self.answer.set_exception(result)
        else:
            self.answer.set_result(result)

    def _on_departure(self, watcher: asyncio.Future[object]) -> None:
        if not watcher.cancelled() and (error := watcher.exception()) is not None:
            self.finish(error)


class ModelQueue:
    """The queue of one loaded model. It does not refer to the model, which would keep it in memory."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = f"{loaded.name}:{loaded.number}"
        self._calls: OrderedDict[_Call, None] = OrderedDict()  # in order of arrival; any can leave
        self._rows = 0  # of the calls in the queue
        self._running = 0  # slots that are taken
        self._is_scheduled = False
        self._arrived: list[_Call] = []  # since the last dispatch
        self._pace = 1.0  # observed time of a call, as a multiple of its measured cost
        self._meter = telemetry.queue_meter(loaded.name, loaded.number)

    async def run(self, call: _Call) -> Outputs:
        self.require_space(call.loaded, len(call.rows))
        self._calls[call] = None
        self._rows += len(call.rows)
        self._arrived.append(call)
        self._schedule()
        try:
            return await call.answer
        finally:
            self._remove(call)
            if call.answer.done() and not call.answer.cancelled():
                call.answer.exception()  # the caller may have been cancelled in the turn in which it was set

    def require_space(self, loaded: LoadedModel, new_rows: int) -> None:
        """Raises `Overloaded` if the queue cannot take a call with that many rows."""
        count, rows = len(self._calls), self._rows + new_rows
        if count < MIN_QUEUE or (
            rows <= MAX_QUEUED_ROWS and self._seconds(loaded, count + 1, rows) <= QUEUE_S
        ):
            return
        self._meter.shed.inc()
        raise Overloaded(self._model, count)

    def _seconds(self, loaded: LoadedModel, count: int, rows: int) -> float:
        """Estimate how long the queue would take."""
        calls = -(-rows // loaded.joint_rows) if loaded.joint_rows else count
        seconds = calls * loaded.cost.fixed_s + rows * loaded.cost.row_s
        return self._pace * seconds / loaded.slots

    def _schedule(self) -> None:
        """Dispatch in the next turn of the event loop: requests that arrive in this one are joined."""
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Start what can start: one call on the event loop, and as many in threads as there are slots."""
        self._is_scheduled = False
        while self._calls:
            first = next(iter(self._calls))
            loaded = first.loaded
            if self._running < loaded.slots:
                calls = self._take(loaded.joint_rows)
            elif loaded.is_cheap(len(first.rows)):
                calls = self._take(min(loaded.joint_rows, loaded.inline_rows))
            else:
                break
            if calls and self._start(calls):
                self._schedule()  # other callbacks of the event loop come first
                break
        for call in self._arrived:
            if call in self._calls:
                call.watch()
        self._arrived.clear()
        self._meter.waiting = len(self._calls)

    def _take(self, most: int) -> list[_Call]:
        """Remove the calls of a joint call of up to `most` rows from the queue, at least one call.

        Calls past their deadline fail.
        """
        taken: list[_Call] = []
        rows, now = 0, time.monotonic()
        while self._calls:
            call = next(iter(self._calls))
            if taken and (rows + len(call.rows) > most or taken[0].rows.layout != call.rows.layout):
                break
            self._remove(call)
            if call.deadline <= now:
                call.finish(DeadlineExceeded("the call's deadline passed while it waited for other calls"))
            elif not call.answer.done():
                taken.append(call)
                rows += len(call.rows)
        return taken

    def _start(self, calls: list[_Call]) -> bool:
        """Run the calls, or start them in a thread. Return whether they ran on the event loop."""
        loaded, rows = calls[0].loaded, sum(len(call.rows) for call in calls)
        self._meter.observe(len(calls))
        if loaded.is_cheap(rows):
            for call, result in zip(calls, loaded.run_each(calls), strict=True):
                call.finish(result)
            return True
        self._running += 1
        loop, start = asyncio.get_running_loop(), time.monotonic()

        def end(future: Future[list[Outputs | Exception]]) -> None:
            if not loop.is_closed():  # at the end of a shutdown
                loop.call_soon_threadsafe(self._end, calls, future, loaded.cost.seconds(rows), start)

        try:
            loaded.threads.submit(loaded.run_each, calls).add_done_callback(end)
        except RuntimeError:  # the threads were shut down
            self._running -= 1
            for call in calls:
                call.finish(Unavailable("the model has been unloaded"))
        return False

    def _end(
        self,
        calls: list[_Call],
        future: Future[list[Outputs | Exception]],
        expected_s: float,
        start: float,
    ) -> None:
        """Hand out the results of a call that ran in a thread, and start the next."""
        self._running -= 1
        ratio = (time.monotonic() - start) / max(expected_s, 1e-6)
        self._pace += 0.2 * (min(max(ratio, 0.1), 10.0) - self._pace)
        for call, result in zip(calls, future.result(), strict=True):
            call.finish(result)
        self._dispatch()

    def _remove(self, call: _Call) -> None:
        """Remove the call if it is still in the queue."""
        if call in self._calls:
            del self._calls[call]
            self._rows -= len(call.rows)
            self._meter.waiting = len(self._calls)
            call.stop_watching()
