"""A long-lived child process that is restarted when it ends."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable

from service import telemetry

BACKOFF_S = 0.2
MAX_BACKOFF_S = 30.0
STABLE_S = 10.0
"""The end of a process that ran longer than this does not count as part of a crash loop."""
CRASH_LOOP = 3
"""After this many early ends in a row the process is reported as a problem."""

log = telemetry.logger(__name__)


class SupervisedProcess:
    """One child process, for example a web process or the template, that is kept running.

    One thread starts the process and waits for it, as long as the process runs: the kernel sends a
    parent-death signal when the *thread* that started the process ends.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], subprocess.Popen[bytes]],
        await_up: Callable[[], bool] = lambda: False,
        describe_end: Callable[[], str] = lambda: "",
    ) -> None:
        """`start` starts the process; it is called again for each restart.

        `await_up` waits until the process has proved that it works, which ends a crash loop. It returns False
        if that cannot be observed. `describe_end` is called when the process has ended: it returns the
        process's own explanation, or "".
        """
        self.name = name
        self._start = start
        self._await_up = await_up
        self._describe_end = describe_end
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # no process is started once `_stopping` is set
        self._stopping = threading.Event()
        self._crashes = 0
        self._last_end = ""
        self._thread = threading.Thread(target=self._keep_running, name=f"keep {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None else process.pid

    def problem(self) -> str | None:
        """Why the process does not stay alive; None while it is starting or running."""
        if self._crashes < CRASH_LOOP:
            return None
        return f"{self.name} {self._last_end}, {self._crashes} times in a row"

    def terminate(self) -> None:
        """Send SIGTERM, and do not restart. Returns at once, so that several processes can end together."""
        with self._lock:
            if self._process is not None and not self._stopping.is_set():
                self._process.terminate()  # once: a process that is ending may have removed its handler
            self._stopping.set()

    def stop(self, grace_s: float) -> None:
        """Call `terminate`, and send SIGKILL after `grace_s`. Returns when the process has ended."""
        self.terminate()
        if self._thread.ident is None:
            return
        self._thread.join(grace_s)
        if self._thread.is_alive() and (process := self._process) is not None:
            process.kill()
        self._thread.join()

    def _keep_running(self) -> None:
        while not self._stopping.is_set():
            started = time.monotonic()
            end = self._run()
            if not self._stopping.is_set():
                log.warning("process.ended", process=self.name, how=end)
            if time.monotonic() - started > STABLE_S:
                self._crashes = 0
            self._crashes, self._last_end = self._crashes + 1, end
            self._stopping.wait(min(BACKOFF_S * 2 ** min(self._crashes - 1, 20), MAX_BACKOFF_S))

    def _run(self) -> str:
        """Start the process and wait for its end; return how it ended."""
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
        end = f"ended with exit code {code}" if code >= 0 else f"was ended by signal {-code}"
        return f"{end} ({reason})" if (reason := self._describe_end()) else end
