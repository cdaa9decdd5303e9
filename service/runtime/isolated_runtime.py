"""Runtime of a model that stays a pickle: it runs in a child process of its own.

The server exchanges arrays with the child (`isolated_protocol.py`) and never loads the model itself. How a
child process is started is passed in as `Isolation.fork`.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from registry.errors import DeadlineExceeded, FieldError, Invalid, Unavailable
from registry.rows import Outputs, Rows
from registry.signature import Signature
from service import telemetry
from service.runtime import isolated_protocol, message_channel
from service.runtime.isolated_protocol import FromChild, LoadModel, ModelLoaded, RowOutputs, RowsRejected
from service.runtime.message_channel import ChannelBroken, MessageUnread

MAX_LOAD_S = 120.0
"""Longest time a child may take to load its model."""
SEND_S = 10.0
"""Longest time a new child may take to read which model to load."""
MEASURE_INTERVAL_S = 10.0
"""Interval between two measurements of a child's memory: one takes the kernel 5 ms."""
BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0


class IsolatedChild(Protocol):
    """A child process that serves `isolated_protocol`, and the server's end of the channel to it."""

    @property
    def pid(self) -> int: ...

    @property
    def channel(self) -> socket.socket: ...

    def end(self) -> int | None:
        """Kill the child if it still runs, and close the channel. Return its exit code, or minus the signal
        that ended it, if known."""
        ...


class Isolation(NamedTuple):
    """How isolated models run."""

    fork: Callable[[], IsolatedChild]  # raises `Unavailable` when no child can be started
    memory_mb: int  # limit of a child
    deadline_s: float  # limit of one call


class CallFailed(Unavailable):
    """The child ended during the call, or the estimator raised an error other than a refusal.

    Another call may succeed, with other rows or with fewer.
    """


class RestartPending(Unavailable):
    """The child has ended several times in a row: the next one starts after `delay_s`."""

    def __init__(self, delay_s: float) -> None:
        super().__init__(f"the model's process keeps dying; it is restarted in {delay_s:.1f} s")
        self.delay_s = delay_s


class _CallUnread(CallFailed):
    """The child ended before it read the call: the call may be sent to another child."""


class IsolatedRuntime:
    """One version in one child. Calls take turns; a child that ended is replaced at the next call."""

    def __init__(self, isolation: Isolation, artifact: Path, signature: Signature) -> None:
        """Start the child and wait until it has loaded the model. Raises `Unavailable` when it cannot."""
        self._isolation = isolation
        self._deadline_s = isolation.deadline_s
        self._signature = signature
        self._load_model = LoadModel(str(artifact.absolute()), signature, isolation.memory_mb)
        self._turn = threading.Lock()  # only its holder starts, calls and drops the child
        self._child: IsolatedChild | None = None
        self._load_until: float | None = None  # set while the child loads its model
        self._crashes = 0  # since the last answer
        self._not_before = 0.0
        self._bytes = 0
        self._measured_at = 0.0
        self._closed = False
        with self._turn:
            self._ready_child(math.inf)

    def run(self, rows: Rows) -> Outputs:
        """Return the estimator's own answer to `rows`, in the signature's shapes.

        Raises `Invalid` with the model's message when it rejects these rows, `DeadlineExceeded` when it does
        not answer within the deadline (including the wait for other calls and for a restart), `CallFailed`
        when the child ended or the model failed, and `Unavailable` when no child can be started.
        """
        deadline = time.monotonic() + self._deadline_s
        if not self._turn.acquire(timeout=self._deadline_s):
            raise self._deadline_exceeded("it is busy with other calls")
        try:
            self._drop_if_ended()
            try:
                return self._call(self._ready_child(deadline), rows, deadline)
            except _CallUnread:  # the child ended after the check above; retried once
                return self._call(self._ready_child(deadline), rows, deadline)
        finally:
            self._turn.release()

    @property
    def pid(self) -> int | None:
        """Process id of the child, for logs and tests."""
        child = self._child
        return None if child is None else child.pid

    @property
    def bytes(self) -> int:
        """Private memory of the child as last measured; 0 without a child."""
        return 0 if self._child is None else self._bytes

    def close(self) -> None:
        """End the child at once. The call in flight and later calls raise `Unavailable`."""
        self._closed = True
        if (child := self._child) is not None:
            with contextlib.suppress(OSError):
                child.channel.shutdown(socket.SHUT_RDWR)  # wakes the call that waits for its answer
        with self._turn:
            self._drop()

    def _ready_child(self, deadline: float) -> IsolatedChild:
        """Return the child with its model loaded; start one if necessary."""
        if self._closed:
            raise Unavailable("the model has been unloaded")
        if self._child is None:
            if (wait_s := self._not_before - time.monotonic()) > 0:
                raise RestartPending(wait_s)
            self._child = self._start()
            if self._crashes:
                telemetry.CHILD_RESTARTS.labels("isolated").inc()
            self._load_until = time.monotonic() + MAX_LOAD_S
        if self._load_until is not None:
            self._await_load(self._child, self._load_until, deadline)
            self._load_until = None
            self._measured_at = -math.inf
            self._measure(self._child)
        return self._child

    def _start(self) -> IsolatedChild:
        child = self._isolation.fork()
        try:
            message_channel.send(child.channel, self._load_model, time.monotonic() + SEND_S)
        except (ChannelBroken, TimeoutError) as error:
            child.end()
            raise Unavailable("the model's process ended before it began to load the model") from error
        return child

    def _await_load(self, child: IsolatedChild, load_until: float, deadline: float) -> None:
        try:
            message = message_channel.receive(child.channel, FromChild, min(deadline, load_until))
        except ChannelBroken as error:
            raise self._crashed("while it loaded the model") from error
        except TimeoutError as error:
            if time.monotonic() < load_until:  # the load continues, and a later call waits for it again
                raise self._deadline_exceeded("it is still being loaded") from error
            raise self._crashed(f"because loading took more than {MAX_LOAD_S:g} s") from error
        if not isinstance(message, ModelLoaded):
            self._crashed("")
            raise Unavailable(f"the model cannot be loaded: {_reason(message)}")

    def _call(self, child: IsolatedChild, rows: Rows, deadline: float) -> Outputs:
        try:
            message_channel.send(child.channel, isolated_protocol.pack_rows(rows), deadline)
            message = message_channel.receive(child.channel, FromChild, deadline)
            if isinstance(message, RowOutputs):
                outputs = isolated_protocol.unpack_outputs(message, self._signature, len(rows))
                self._crashes = 0
                self._measure(child)
                return outputs
        except MessageUnread as error:
            raise _CallUnread(str(self._crashed("before it had read the call"))) from error
        except ChannelBroken as error:
            raise CallFailed(str(self._crashed("during the call"))) from error
        except TimeoutError as error:
            self._drop()  # a late answer must not be read as the answer to the next call
            raise self._deadline_exceeded("its process was ended") from error
        if isinstance(message, RowsRejected):
            raise Invalid(f"the model refuses these rows: {message.message}", [FieldError(message.message)])
        raise CallFailed(f"the model failed: {_reason(message)}")

    def _measure(self, child: IsolatedChild) -> None:
        """Measure the child's memory after the load, and at intervals after calls, which may increase it."""
        if (now := time.monotonic()) - self._measured_at > MEASURE_INTERVAL_S:
            self._bytes, self._measured_at = private_bytes(child.pid), now

    def _drop_if_ended(self) -> None:
        """Detect a child that ended between two calls, so that the next call does not fail."""
        if self._child is None or self._load_until is not None:
            return
        self._child.channel.setblocking(False)
        try:
            self._child.channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return  # it runs, and has sent nothing
        except OSError:
            pass
        self._crashed("between two calls")

    def _crashed(self, when: str) -> Unavailable:
        self._drop()
        if self._closed:
            return Unavailable("the model has been unloaded")
        self._crashes += 1
        if self._crashes > 1:  # the first restart is immediate
            self._not_before = time.monotonic() + min(BACKOFF_S * 2 ** (self._crashes - 2), MAX_BACKOFF_S)
        return Unavailable(f"the model's process ended {when}")

    def _deadline_exceeded(self, reason: str) -> DeadlineExceeded:
        return DeadlineExceeded(f"the model did not answer within {self._deadline_s:g} s: {reason}")

    def _drop(self) -> None:
        child, self._child, self._load_until = self._child, None, None
        if child is not None:
            child.end()


def _reason(message: object) -> str:
    return getattr(message, "message", "the process sent no reason")


def private_bytes(pid: int) -> int:
    """Return the memory that a process does not share, which its end would free.

    0 when the system does not report it: not on Linux, or the process has ended.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
