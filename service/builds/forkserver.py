"""The server's side of the template: have it running, fork a child from it, end the child."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec

import service
from registry.errors import Unavailable
from service.builds.children import Keeper
from service.builds.messages import End, Ended, Fork, Role, Started
from service.runtime import wire

START_S = 60.0
"""Longest a template may take for its imports; on a cold disk they have taken 8 s."""
COMMAND_S = 10.0
"""Longest the template may take to fork or to end a child; one that takes longer is replaced."""

KEPT = (
    *("HOME", "LANG", "LC_ALL", "LC_CTYPE", "PATH", "PYTHONPATH", "TMPDIR", "TZ", "VIRTUAL_ENV"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
)
"""All that a child sees of the server's environment: no key, no database, nobody's cloud account."""

SET = {
    # One thread each: the server's own work needs the other cores, and the template may not have any.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "ORT_DISABLE_TELEMETRY": "1",  # it starts a thread at import, and reports home
}


class Forked:
    """A child of the template, and our end of the channel to it."""

    def __init__(self, server: ForkServer, control: socket.socket, pid: int, channel: socket.socket) -> None:
        self._server = server
        self._control = control
        self._code: int | None = None
        self._ended = False
        self.pid = pid
        self.channel = channel

    def end(self) -> int | None:
        """Kill the child if it still runs, and close the channel. Its exit code, or minus the signal that
        ended it; None when the template died, and the child with it."""
        if not self._ended:
            self._ended = True
            self.channel.close()
            self._code = self._server._end(self._control, self.pid)
        return self._code


class ForkServer:
    """One template, kept alive. Thread-safe."""

    def __init__(self) -> None:
        self._keeper = Keeper("the build template", self._start)
        self._turn = threading.Condition()  # one command at a time; notified when there is a new template
        self._control: socket.socket | None = None
        self._ready = False
        self._stopped = False

    def start(self) -> None:
        self._keeper.start()

    def stop(self, grace_s: float = 2.0) -> None:
        """End the template and every child. Commands under way raise `Unavailable`."""
        self._stopped = True
        self._keeper.stop(grace_s)
        with self._turn:
            self._hang_up()
            self._turn.notify_all()

    def problem(self) -> str | None:
        """Why there is no template and will be none soon; None while it is starting or usable."""
        return self._keeper.problem()

    @property
    def pid(self) -> int | None:
        return self._keeper.pid

    def fork(self, role: Role) -> Forked:
        """A new child, waiting for its order. Waits for the template to be ready.

        Raises `Unavailable` when the template cannot be kept alive, or the server shuts down.
        """
        deadline = time.monotonic() + START_S
        while True:
            with self._turn:
                control = self._wait_ready(deadline)
                ours, theirs = socket.socketpair()
                with theirs:
                    try:
                        return Forked(self, control, self._command_fork(control, role, theirs), ours)
                    except (wire.Broken, TimeoutError, OSError):
                        ours.close()
                        self._hang_up()  # a template that lives but does not answer ends by this

    def _command_fork(self, control: socket.socket, role: Role, descriptor: socket.socket) -> int:
        body = msgspec.msgpack.encode(Fork(role))
        control.settimeout(COMMAND_S)
        socket.send_fds(control, [wire.HEADER.pack(len(body)) + body], [descriptor.fileno()])
        started: Started = wire.receive(control, Started, time.monotonic() + COMMAND_S)
        return started.pid

    def _end(self, control: socket.socket, pid: int) -> int | None:
        with self._turn:
            if control is not self._control:
                return None
            deadline = time.monotonic() + COMMAND_S
            try:
                wire.send(control, End(pid), deadline)
                ended: Ended = wire.receive(control, Ended, deadline)
            except (wire.Broken, TimeoutError):
                self._hang_up()
                return None
            return ended.code

    def _wait_ready(self, deadline: float) -> socket.socket:
        """The control channel of a template that has said it is ready. Called with the turn."""
        while True:
            if self._stopped or (problem := self.problem()) is not None:
                raise Unavailable("the server is shutting down" if self._stopped else str(problem))
            left = deadline - time.monotonic()
            if left <= 0:
                raise Unavailable(f"the build template was not ready within {START_S:g} s")
            if self._control is None:
                self._turn.wait(min(left, 1.0))
            elif self._ready:
                return self._control
            else:
                self._await_ready(self._control, deadline)

    def _await_ready(self, control: socket.socket, deadline: float) -> None:
        try:
            wire.receive(control, Started, deadline)
        except (wire.Broken, TimeoutError):
            self._hang_up()
            return
        self._ready = True
        self._keeper.healthy()

    def _hang_up(self) -> None:
        if self._control is not None:
            self._control.close()
        self._control, self._ready = None, False

    def _start(self) -> subprocess.Popen[bytes]:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "service.builds.template", str(theirs.fileno())],
                    env=environment(),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,  # the server's stdout is not a model's to write to
                    start_new_session=True,  # Ctrl-C is for the server, which then ends its children in order
                )
            except OSError:
                ours.close()
                raise
        with self._turn:
            self._hang_up()
            self._control = ours
            self._turn.notify_all()
        return process


def environment() -> dict[str, str]:
    """The environment of the template and its children: what they need, and no secret."""
    kept = {name: value for name in KEPT if (value := os.environ.get(name))}
    root = str(Path(service.__file__ or "").absolute().parents[1])  # -P keeps the working directory out
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH")]))
    return kept | SET
