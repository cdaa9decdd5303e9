"""A model that stays a pickle: it lives in a child process of its own and is asked over a socket.

What starts the child is handed in (`Spawn`): starting processes is the supervisor's business. The
server sends arrays and receives arrays (`wire.py`, `arrays.py`) and never sees the model itself.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from registry.errors import DeadlineExceeded, FieldError, Invalid, Unavailable
from registry.rows import Outputs, Rows
from registry.signature import Signature
from service import telemetry
from service.runtime import arrays, child_protocol

LOAD_S = 120.0
"""Longest a child may take to load its model."""
MEASURE_S = 10.0
"""How often a child's memory is measured: it takes the kernel 5 ms."""
BACKOFF_S = 0.5
MOST_BACKOFF_S = 30.0


@dataclass(frozen=True, slots=True)
class IsolatedSpec:
    artifact: Path
    format: str
    signature: Signature


class SpawnedChild(Protocol):
    """A child that has been told its model: our end of the talk, and the way to be rid of it."""

    @property
    def pid(self) -> int: ...

    @property
    def channel(self) -> socket.socket: ...

    def end(self) -> int | None:
        """Kill it if it still runs and close the channel. Its exit code, or minus the signal, if known."""
        ...


Spawn = Callable[[IsolatedSpec], SpawnedChild]
"""Raises `Unavailable` when no child can be started."""


class _Unasked(Unavailable):
    """The child was dead before it had read the call: another may be asked."""


class IsolatedRuntime:
    """One version in one child. Calls take turns; a child that died is replaced at the next call."""

    def __init__(
        self, spawn: Spawn, artifact: Path, format: str, signature: Signature, deadline_s: float
    ) -> None:
        """Start the child and wait for it to load the model. Raises `Unavailable` when it cannot."""
        self._spawn = spawn
        self._spec = IsolatedSpec(artifact.absolute(), format, signature)
        self._deadline_s = deadline_s
        self._turn = threading.Lock()  # its holder alone starts, asks and drops the child
        self._child: SpawnedChild | None = None
        self._load_until: float | None = None  # set while the child loads its model
        self._crashes = 0  # since it last answered
        self._not_before = 0.0
        self._bytes = 0
        self._measured = 0.0
        self._closed = False
        with self._turn:
            self._ready(math.inf)

    def run(self, rows: Rows) -> Outputs:
        """The estimator's own answer to `rows`, shaped as the signature says.

        Raises `Invalid` with the model's message when it does not take these rows, `DeadlineExceeded`
        when there is no answer within the deadline (which counts the wait for other calls and for a
        restart), and `Unavailable` when the child died or the model failed.
        """
        deadline = time.monotonic() + self._deadline_s
        if not self._turn.acquire(timeout=self._deadline_s):
            raise self._late("it is busy with other calls")
        try:
            self._drop_if_dead()
            try:
                return self._ask(self._ready(deadline), rows, deadline)
            except _Unasked:  # it died after we looked; once only: the next may fare no better
                return self._ask(self._ready(deadline), rows, deadline)
        finally:
            self._turn.release()

    @property
    def pid(self) -> int | None:
        """The child's, for logs and tests."""
        child = self._child
        return None if child is None else child.pid

    @property
    def bytes(self) -> int:
        """What the child holds for itself alone, as last measured; 0 while there is no child."""
        return 0 if self._child is None else self._bytes

    def close(self) -> None:
        """End the child at once. The call in flight and later ones raise `Unavailable`."""
        self._closed = True
        if (child := self._child) is not None:
            with contextlib.suppress(OSError):
                child.channel.shutdown(socket.SHUT_RDWR)  # wakes the call that waits for its answer
        with self._turn:
            self._drop()

    def _ready(self, deadline: float) -> SpawnedChild:
        """The child with its model loaded; a new one when there is none."""
        if self._closed:
            raise Unavailable("the model has been unloaded")
        if self._child is None:
            if (wait := self._not_before - time.monotonic()) > 0:
                raise Unavailable(f"the model's process keeps dying; it is started again in {wait:.1f} s")
            self._child = self._spawn(self._spec)
            if self._crashes:
                telemetry.CHILD_RESTARTS.labels("isolated").inc()
            self._load_until = time.monotonic() + LOAD_S
        if self._load_until is not None:
            self._await_load(self._child, self._load_until, deadline)
            self._load_until = None
            self._measured = -math.inf
            self._measure(self._child)
        return self._child

    def _await_load(self, child: SpawnedChild, load_until: float, deadline: float) -> None:
        try:
            message = child_protocol.receive(
                child.channel, child_protocol.FromChild, min(deadline, load_until)
            )
        except child_protocol.Broken as error:
            raise self._crashed("while it loaded the model") from error
        except TimeoutError as error:
            if time.monotonic() < load_until:  # it loads on: the next call finds it further
                raise self._late("it is still being loaded") from error
            raise self._crashed(f"because loading took more than {LOAD_S:g} s") from error
        if not isinstance(message, child_protocol.Loaded):
            self._crashed("")
            raise Unavailable(f"the model cannot be loaded: {getattr(message, 'message', 'no reason given')}")

    def _ask(self, child: SpawnedChild, rows: Rows, deadline: float) -> Outputs:
        try:
            child_protocol.send(child.channel, arrays.pack_rows(rows), deadline)
            answer = child_protocol.receive(child.channel, child_protocol.FromChild, deadline)
            if isinstance(answer, child_protocol.Answer):
                outputs = arrays.unpack_outputs(answer, self._spec.signature, len(rows))
                self._crashes = 0
                self._measure(child)
                return outputs
        except child_protocol.Unread as error:
            raise _Unasked(str(self._crashed("before it had read the call"))) from error
        except child_protocol.Broken as error:
            raise self._crashed("during the call") from error
        except TimeoutError as error:
            self._drop()  # what it would answer later is no answer to the next call
            raise self._late("its process was ended") from error
        if isinstance(answer, child_protocol.Refusal):
            raise Invalid(f"the model refuses these rows: {answer.message}", [FieldError(answer.message)])
        raise Unavailable(f"the model failed: {getattr(answer, 'message', 'no reason given')}")

    def _measure(self, child: SpawnedChild) -> None:
        """Note the child's memory: after loading, and now and then after calls, which may make it grow."""
        if (moment := time.monotonic()) - self._measured > MEASURE_S:
            self._bytes, self._measured = private_bytes(child.pid), moment

    def _drop_if_dead(self) -> None:
        """Notice a child that died between two calls, so that the next call does not pay for it."""
        if self._child is None or self._load_until is not None:
            return
        self._child.channel.setblocking(False)
        try:
            self._child.channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return  # alive and silent, as it should be
        except OSError:
            pass
        self._crashed("between two calls")

    def _crashed(self, when: str) -> Unavailable:
        self._drop()
        if self._closed:
            return Unavailable("the model has been unloaded")
        self._crashes += 1
        if self._crashes > 1:  # the first restart is immediate
            self._not_before = time.monotonic() + min(BACKOFF_S * 2 ** (self._crashes - 2), MOST_BACKOFF_S)
        return Unavailable(f"the model's process ended {when}")

    def _late(self, why: str) -> DeadlineExceeded:
        return DeadlineExceeded(f"the model did not answer within {self._deadline_s:g} s: {why}")

    def _drop(self) -> None:
        child, self._child, self._load_until = self._child, None, None
        if child is not None:
            child.end()


def private_bytes(pid: int) -> int:
    """The memory of a process that it does not share, so what its end would free. Where the system does
    not tell (no Linux, or the process is gone): 0."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
