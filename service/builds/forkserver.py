"""The fork server: keeps the template running, forks children from it, and ends them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

import service
from registry.errors import Unavailable
from service import telemetry
from service.builds.protocol import ChildEnded, EndChild, Fork, Forked, Role
from service.builds.supervised_process import SupervisedProcess
from service.runtime import message_channel
from service.runtime.message_channel import ChannelBroken

START_S = 60.0
"""Longest time a template may take for its imports; on a cold disk they have taken 8 s."""
EXIT_S = 2.0
"""Longest time a template that closed its socket may take to exit with its own exit code."""
COMMAND_S = 10.0
"""Longest time the template may take to fork or end a child; a slower one is replaced."""
MAX_ERROR_CHARACTERS = 200

INHERITED = (
    *("HOME", "LANG", "LC_ALL", "LC_CTYPE", "PATH", "PYTHONPATH", "TMPDIR", "TZ", "VIRTUAL_ENV"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "NUMBA_CACHE_DIR"),
)
"""The only variables of the server's environment that children see: no key, database or cloud credentials."""

FIXED = {
    # One thread each: the server's own work needs the other cores, and the template must not have any.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "ORT_DISABLE_TELEMETRY": "1",  # its telemetry starts a thread at import
}


class StderrRelay:
    """Copies a process's stderr to ours, and keeps its end, which explains why the process ended."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._tail = b""
        self._thread = threading.Thread(target=self._copy, name="stderr of the template", daemon=True)
        self._thread.start()

    def last_line(self) -> str:
        """Return the last line of a process that has ended, up to `MAX_ERROR_CHARACTERS`; "" without any."""
        self._thread.join(EXIT_S)
        lines = self._tail.decode(errors="replace").strip().splitlines()
        return lines[-1].strip()[:MAX_ERROR_CHARACTERS] if lines else ""

    def _copy(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        with stderr:
            while chunk := os.read(stderr.fileno(), 1 << 16):  # a model may write lines of any length
                self._tail = (self._tail + chunk)[-4096:]
                with contextlib.suppress(OSError):  # ours may be closed; the template must never block on it
                    os.write(2, chunk)


class Template(NamedTuple):
    process: subprocess.Popen[bytes]
    control: socket.socket
    stderr: StderrRelay

    def end(self) -> None:
        self.control.close()
        self.process.kill()  # a template that hangs does not see the closed socket


class ChildProcess:
    """A child of the template, and the server's end of the channel to it."""

    def __init__(self, server: ForkServer, template: Template, pid: int, channel: socket.socket) -> None:
        self._server = server
        self._template = template
        self._code: int | None = None
        self._ended = False
        self.pid = pid
        self.channel = channel

    def end(self) -> int | None:
        """Kill the child if it still runs, and close the channel.

        Returns its exit code, or minus the signal that ended it. None when the template died, and the child
        with it.
        """
        if not self._ended:
            self._ended = True
            self.channel.close()
            self._code = self._server._end(self._template, self.pid)
        return self._code


class ForkServer:
    """One template, started at the first use and kept running. Thread-safe."""

    def __init__(self, module: str = "service.builds.template") -> None:
        """`module` is what the template runs."""
        self._module = module
        self._process = SupervisedProcess(
            "the build template", self._start_template, self._await_ready, self._start_error
        )
        self._turn = threading.Condition()  # one command at a time; notified when a template is ready
        self._start_lock = threading.Lock()  # once `_stopped` is set, the supervised process is not started
        self._is_started = False
        self._starting: Template  # used only by the supervised process's thread, as is the next
        self._starting_is_ready = False
        self._template: Template | None = None  # the one that is ready
        self._restarts = -1
        self._stopped = False

    def start(self) -> None:
        """Start the template now, so that the first child does not wait for its imports."""
        with self._start_lock:
            if not self._is_started and not self._stopped:
                self._is_started = True
                self._process.start()

    def stop(self, grace_s: float = 2.0) -> None:
        """End the template and every child. Commands in progress raise `Unavailable`."""
        with self._start_lock:
            self._stopped = True
        self._process.stop(grace_s)
        with self._turn:
            self._discard_template()
            self._turn.notify_all()

    def problem(self) -> str | None:
        """Why the template cannot be kept running; None while it is starting or usable."""
        return self._process.problem()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def fork(self, role: Role) -> ChildProcess:
        """Return a new child that waits for its first message. Waits until the template is ready.

        Raises `Unavailable` when the template cannot be kept running, or the server is shutting down.
        """
        self.start()
        deadline = time.monotonic() + START_S
        while True:
            with self._turn:
                template = self._ready_template(deadline)
                server_end, child_end = socket.socketpair()
                with child_end:
                    try:
                        return ChildProcess(
                            self, template, _fork(template.control, role, child_end), server_end
                        )
                    except (ChannelBroken, OSError):
                        server_end.close()
                        self._discard_template()

    def _end(self, template: Template, pid: int) -> int | None:
        with self._turn:
            if template is not self._template:
                return None
            deadline = time.monotonic() + COMMAND_S
            try:
                message_channel.send(template.control, EndChild(pid), deadline)
                ended: ChildEnded = message_channel.receive(template.control, ChildEnded, deadline)
            except (ChannelBroken, TimeoutError):
                self._discard_template()
                return None
            return ended.code

    def _ready_template(self, deadline: float) -> Template:
        """Wait for the template to be ready, and return it. The caller holds the turn."""
        while self._template is None:
            if self._stopped:
                raise Unavailable("the server is shutting down")
            if (problem := self.problem()) is not None:
                raise Unavailable(problem)
            if (remaining_s := deadline - time.monotonic()) <= 0:
                raise Unavailable(f"the build template was not ready within {START_S:g} s")
            self._turn.wait(min(remaining_s, 1.0))
        return self._template

    def _discard_template(self) -> None:
        """End a template that is dead or does not answer; the supervised process starts another one."""
        if self._template is not None:
            self._template.end()
        self._template = None

    def _start_template(self) -> subprocess.Popen[bytes]:
        server_end, child_end = socket.socketpair()
        with child_end:
            argv = [
                sys.executable,
                "-P",
                "-m",
                self._module,
                str(child_end.fileno()),
                str(os.getpid()),
            ]
            try:
                process = subprocess.Popen(
                    argv,
                    env=environment(),
                    pass_fds=[child_end.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,  # models must not write to the server's stdout
                    stderr=subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C stops the server, which then ends its children in order
                )
            except OSError:
                server_end.close()
                raise
        self._starting, self._starting_is_ready = Template(process, server_end, StderrRelay(process)), False
        return process

    def _await_ready(self) -> bool:
        """Wait until a new template reports that it is ready, then use it."""
        try:
            message_channel.receive(self._starting.control, Forked, time.monotonic() + START_S)
        except ChannelBroken:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._starting.process.wait(EXIT_S)
            self._starting.end()
            return False
        except TimeoutError:
            self._starting.end()
            return False
        with self._turn:
            self._restarts += 1
            if self._restarts:
                telemetry.CHILD_RESTARTS.labels("template").inc()
            self._starting_is_ready = True
            self._discard_template()
            self._template = self._starting
            self._turn.notify_all()
        return True

    def _start_error(self) -> str:
        """The last line of a template that ended during its start. Later lines come from models."""
        return "" if self._starting_is_ready else self._starting.stderr.last_line()


def _fork(control: socket.socket, role: Role, descriptor: socket.socket) -> int:
    body = msgspec.msgpack.encode(Fork(role))
    control.settimeout(COMMAND_S)
    socket.send_fds(control, [message_channel.HEADER.pack(len(body)) + body], [descriptor.fileno()])
    forked: Forked = message_channel.receive(control, Forked, time.monotonic() + COMMAND_S)
    return forked.pid


def environment() -> dict[str, str]:
    """Return the environment of the template and its children, without secrets."""
    inherited = {name: value for name in INHERITED if (value := os.environ.get(name))}
    root = str(Path(service.__file__ or "").absolute().parents[1])  # -P excludes the working directory
    inherited["PYTHONPATH"] = os.pathsep.join(filter(None, [root, inherited.get("PYTHONPATH")]))
    return inherited | FIXED
