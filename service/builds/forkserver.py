"""The server's side of the template: have it running, fork a child from it, end the child."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

import service
from registry.errors import Unavailable
from service import telemetry
from service.builds.child_process import Keeper
from service.builds.messages import End, Ended, Fork, Role, Started
from service.runtime import child_protocol

if TYPE_CHECKING:  # numpy comes with the first model, not with the start
    from service.runtime.isolated_runtime import IsolatedSpec

START_S = 60.0
"""Longest a template may take for its imports; on a cold disk they have taken 8 s."""
EXIT_S = 2.0
"""Longest a template that closed its socket may take to end by itself, which tells more than our signal."""
MOST_CHARACTERS = 200
COMMAND_S = 10.0
"""Longest the template may take to fork or to end a child; one that takes longer is replaced."""

KEPT = (
    *("HOME", "LANG", "LC_ALL", "LC_CTYPE", "PATH", "PYTHONPATH", "TMPDIR", "TZ", "VIRTUAL_ENV"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "NUMBA_CACHE_DIR"),
)
"""All that a child sees of the server's environment: no key, no database, nobody's cloud account."""

SET = {
    # One thread each: the server's own work needs the other cores, and the template may not have any.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "ORT_DISABLE_TELEMETRY": "1",  # its telemetry starts a thread at import
}


class Said:
    """A process's stderr: passed on to ours as it comes, and its last line kept, for it says why it ended."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._tail = b""
        self._thread = threading.Thread(target=self._pass_on, name="stderr of the template", daemon=True)
        self._thread.start()

    def last(self) -> str:
        """Its last words, once it has ended: up to `MOST_CHARACTERS`, "" when it said nothing."""
        self._thread.join(EXIT_S)
        lines = self._tail.decode(errors="replace").strip().splitlines()
        return lines[-1].strip()[:MOST_CHARACTERS] if lines else ""

    def _pass_on(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        with stderr:
            while said := os.read(stderr.fileno(), 1 << 16):  # lines may be as long as a model likes
                self._tail = (self._tail + said)[-4096:]
                with contextlib.suppress(OSError):  # ours may be closed; the template must never block on it
                    os.write(2, said)


class Template(NamedTuple):
    process: subprocess.Popen[bytes]
    control: socket.socket
    said: Said

    def end(self) -> None:
        self.control.close()
        self.process.kill()  # closing is not enough for one that hangs


class Forked:
    """A child of the template, and our end of the channel to it."""

    def __init__(self, server: ForkServer, template: Template, pid: int, channel: socket.socket) -> None:
        self._server = server
        self._template = template
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
            self._code = self._server._end(self._template, self.pid)
        return self._code


class ForkServer:
    """One template, kept alive. Thread-safe."""

    def __init__(self) -> None:
        self._keeper = Keeper("the build template", self._start, self._await_up, self._why)
        self._turn = threading.Condition()  # one command at a time; notified when a template is up
        self._starting: Template  # used by the keeper's thread alone, as is the next
        self._was_up = False  # has that one been up?
        self._template: Template | None = None  # the one that is up
        self._started = False
        self._stopped = False

    def start(self) -> None:
        self._keeper.start()

    def stop(self, grace_s: float = 2.0) -> None:
        """End the template and every child. Commands under way raise `Unavailable`."""
        self._stopped = True
        self._keeper.stop(grace_s)
        with self._turn:
            self._give_up()
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
                template = self._wait_up(deadline)
                ours, theirs = socket.socketpair()
                with theirs:
                    try:
                        return Forked(self, template, _fork(template.control, role, theirs), ours)
                    except (child_protocol.Broken, OSError):
                        ours.close()
                        self._give_up()

    def isolated(self, spec: IsolatedSpec, memory_mb: int) -> Forked:
        """A child that is loading `spec` within `memory_mb` MiB. Raises `Unavailable`."""
        child = self.fork("isolated")
        order = child_protocol.Load(str(spec.artifact), spec.format, spec.signature, memory_mb)
        try:
            child_protocol.send(child.channel, order, time.monotonic() + COMMAND_S)
        except (child_protocol.Broken, TimeoutError) as error:
            child.end()
            raise Unavailable("the model's process ended before it was told its model") from error
        return child

    def _end(self, template: Template, pid: int) -> int | None:
        with self._turn:
            if template is not self._template:
                return None
            deadline = time.monotonic() + COMMAND_S
            try:
                child_protocol.send(template.control, End(pid), deadline)
                ended: Ended = child_protocol.receive(template.control, Ended, deadline)
            except (child_protocol.Broken, TimeoutError):
                self._give_up()
                return None
            return ended.code

    def _wait_up(self, deadline: float) -> Template:
        """The template, once it is up. Called with the turn."""
        while self._template is None:
            if self._stopped:
                raise Unavailable("the server is shutting down")
            if (problem := self.problem()) is not None:
                raise Unavailable(problem)
            if (left := deadline - time.monotonic()) <= 0:
                raise Unavailable(f"the build template was not ready within {START_S:g} s")
            self._turn.wait(min(left, 1.0))
        return self._template

    def _give_up(self) -> None:
        """Be rid of a template that is dead or does not answer; the keeper starts another."""
        if self._template is not None:
            self._template.end()
        self._template = None

    def _start(self) -> subprocess.Popen[bytes]:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                module, given = "service.builds.template", [str(theirs.fileno()), str(os.getpid())]
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", module, *given],
                    env=environment(),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,  # the server's stdout is not a model's to write to
                    stderr=subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C is for the server, which then ends its children in order
                )
            except OSError:
                ours.close()
                raise
        self._starting, self._was_up = Template(process, ours, Said(process)), False
        return process

    def _await_up(self) -> bool:
        """Wait for a new template to say that it is ready, then use it."""
        try:
            child_protocol.receive(self._starting.control, Started, time.monotonic() + START_S)
        except child_protocol.Broken:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._starting.process.wait(EXIT_S)
            self._starting.end()
            return False
        except TimeoutError:
            self._starting.end()
            return False
        with self._turn:
            if self._started:
                telemetry.CHILD_RESTARTS.labels("template").inc()
            self._started = self._was_up = True
            self._give_up()
            self._template = self._starting
            self._turn.notify_all()
        return True

    def _why(self) -> str:
        """What a template that ended during its start said last; later it is its models that speak."""
        return "" if self._was_up else self._starting.said.last()


def _fork(control: socket.socket, role: Role, descriptor: socket.socket) -> int:
    body = msgspec.msgpack.encode(Fork(role))
    control.settimeout(COMMAND_S)
    socket.send_fds(control, [child_protocol.HEADER.pack(len(body)) + body], [descriptor.fileno()])
    started: Started = child_protocol.receive(control, Started, time.monotonic() + COMMAND_S)
    return started.pid


def environment() -> dict[str, str]:
    """The environment of the template and its children: what they need, and no secret."""
    kept = {name: value for name in KEPT if (value := os.environ.get(name))}
    root = str(Path(service.__file__ or "").absolute().parents[1])  # -P keeps the working directory out
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH")]))
    return kept | SET
