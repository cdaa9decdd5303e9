"""Keeping a process alive: start it, start it again when it ends, end it when told to, or with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # linux/prctl.h
BACKOFF_S = 0.2
MOST_BACKOFF_S = 30.0
STABLE_S = 10.0
"""A process that lived this long was well: its end is no part of a crash loop."""
CRASH_LOOP = 3
"""So many early ends in a row make a problem."""


class Keeper:
    """One long-lived child process, for instance a web process or the template.

    The thread that starts the process is the thread that waits for it, and lives as long as it does:
    a parent-death signal is sent when the starting *thread* ends.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], subprocess.Popen[bytes]],
        await_up: Callable[[], bool] = lambda: False,
        why: Callable[[], str] = lambda: "",
    ) -> None:
        """`start` starts the process, and is called again for each restart. `await_up` then waits until the
        process has shown that it works, which ends a crash loop; False when it cannot tell.
        `why` is asked when it has ended: what it said of that itself, or ""."""
        self.name = name
        self._start = start
        self._await_up = await_up
        self._why = why
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # no process is started once `_stopping` is set
        self._stopping = threading.Event()
        self._crashes = 0
        self._last = ""
        self._thread = threading.Thread(target=self._keep, name=f"keep {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None else process.pid

    def problem(self) -> str | None:
        """Why the process cannot be kept alive; None while it is starting or running."""
        if self._crashes < CRASH_LOOP:
            return None
        return f"{self.name} {self._last}, {self._crashes} times in a row"

    def terminate(self) -> None:
        """SIGTERM, and no restart. Returns at once: several keepers can so be ended together."""
        with self._lock:
            if self._process is not None and not self._stopping.is_set():
                self._process.terminate()  # once: who is on its way out may have no handler any more
            self._stopping.set()

    def stop(self, grace_s: float) -> None:
        """`terminate`, and SIGKILL after the grace. Returns when the process has ended."""
        self.terminate()
        if self._thread.ident is None:
            return
        self._thread.join(grace_s)
        if self._thread.is_alive() and (process := self._process) is not None:
            process.kill()
        self._thread.join()

    def _keep(self) -> None:
        while not self._stopping.is_set():
            started = time.monotonic()
            how = self._run()
            if not self._stopping.is_set():
                from service import telemetry  # who keeps has it; who is kept imports this module, too

                telemetry.logger(__name__).warning("process.ended", process=self.name, how=how)
            if time.monotonic() - started > STABLE_S:
                self._crashes = 0
            self._crashes, self._last = self._crashes + 1, how
            self._stopping.wait(min(BACKOFF_S * 2 ** min(self._crashes - 1, 20), MOST_BACKOFF_S))

    def _run(self) -> str:
        """Start the process, wait for its end, and say how it ended."""
        with self._lock:
            if self._stopping.is_set():
                return "was not started"
            try:
                self._process = self._start()
            except OSError as error:
                return f"cannot be started ({error})"
        if self._await_up():
            self._crashes = 0
        code = self._process.wait()
        self._process = None
        how = f"ended with exit code {code}" if code >= 0 else f"was ended by signal {-code}"
        return f"{how} ({why})" if (why := self._why()) else how


def stop_signal() -> Callable[[], object]:
    """Take SIGTERM and SIGINT from now on; what is returned waits for the first of them.

    A handler that sets a `threading.Event` can block on the event's own lock when a second signal comes
    while it runs (9 of 200 processes hung). The interpreter's wakeup pipe takes no lock.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return lambda: os.read(reading, 1)


def end_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """For a child to call first: have the kernel send it `by` when the thread of `parent` that started it
    ends. Linux only; elsewhere a child learns of its parent's end by a closed socket, if it has one."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, by, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the kernel was told
            os._exit(1)


def end_by_itself() -> None:
    """From now on no longer as `end_with_parent` said: the child sees to its end, and to its own children."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
