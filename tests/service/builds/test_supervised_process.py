"""A child process that is restarted when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from service.builds import supervised_process
from service.builds.supervised_process import CRASH_LOOP, SupervisedProcess
from tests.service.builds.processes import alive, wait_for_end

SLEEP_CODE = "import time; print('up', flush=True); time.sleep(60)"
IGNORE_SIGTERM_CODE = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEP_CODE


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised_process, "BACKOFF_S", 0.02)


class PythonChildren:
    """Starts Python children that run `code`; a test can wait until each of them is up."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.pids: list[int] = []
        self._started = threading.Semaphore(0)

    def __call__(self) -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-c", self.code], stdout=subprocess.PIPE)
        assert child.stdout is not None
        with child.stdout:
            child.stdout.readline()
        self.pids.append(child.pid)
        self._started.release()
        return child

    def next(self) -> int:
        assert self._started.acquire(timeout=10)
        return self.pids[-1]


def test_a_killed_process_is_restarted_and_logged(capsys: pytest.CaptureFixture[str]) -> None:
    start = PythonChildren(SLEEP_CODE)
    process = SupervisedProcess("sleeper", start)
    process.start()
    try:
        first = start.next()
        os.kill(first, signal.SIGKILL)
        assert start.next() != first
        assert process.problem() is None
        assert "sleeper" in (output := capsys.readouterr().out)
        assert "was ended by signal 9" in output
    finally:
        process.stop(5)


def test_a_stopped_process_is_not_restarted(capsys: pytest.CaptureFixture[str]) -> None:
    start = PythonChildren(SLEEP_CODE)
    process = SupervisedProcess("sleeper", start)
    process.start()
    pid = start.next()
    process.stop(5)
    assert not alive(pid)
    assert start.pids == [pid]
    assert "process.ended" not in capsys.readouterr().out
    assert process.pid is None


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_period() -> None:
    start = PythonChildren(IGNORE_SIGTERM_CODE)
    process = SupervisedProcess("deaf", start)
    process.start()
    pid = start.next()
    process.stop(0.2)
    assert wait_for_end(pid)


def test_terminate_does_not_wait_for_the_end() -> None:
    starts = [PythonChildren(SLEEP_CODE), PythonChildren(SLEEP_CODE)]
    processes = [SupervisedProcess("sleeper", start) for start in starts]
    for process in processes:
        process.start()
    pids = [start.next() for start in starts]
    for process in processes:
        process.terminate()
    assert all(wait_for_end(pid) for pid in pids)
    for process in processes:
        process.stop(5)


def test_a_crash_loop_is_a_problem_that_names_the_exit_code() -> None:
    start = PythonChildren("raise SystemExit(7)")
    process = SupervisedProcess("crasher", start)
    assert process.problem() is None
    process.start()
    for _ in range(CRASH_LOOP + 1):  # the start after them proves that they were counted
        start.next()
    assert (process.problem() or "").startswith("crasher ended with exit code 7")
    process.stop(5)


def test_a_command_that_does_not_exist_is_a_problem(tmp_path: Path) -> None:
    attempts = threading.Semaphore(0)

    def start() -> subprocess.Popen[bytes]:
        attempts.release()
        return subprocess.Popen([tmp_path / "nothing"])

    process = SupervisedProcess("nothing", start)
    process.start()
    assert all(attempts.acquire(timeout=10) for _ in range(CRASH_LOOP + 1))
    assert "cannot be started" in (process.problem() or "")
    process.stop(5)


def test_a_process_that_was_never_started_can_be_stopped() -> None:
    SupervisedProcess("never started", PythonChildren(SLEEP_CODE)).stop(1)


def test_a_process_receives_one_sigterm(tmp_path: Path) -> None:
    """`terminate` ends several processes together, then `stop` waits for each; a second signal would
    interrupt what the first one began."""
    signals = tmp_path / "signals"
    signals.write_text("")
    start = PythonChildren(
        f"""
import pathlib, signal, time
signals = pathlib.Path({str(signals)!r})
signal.signal(signal.SIGTERM, lambda *_: signals.write_text(signals.read_text() + "."))
print("up", flush=True)
while not signals.read_text():
    time.sleep(0.01)
time.sleep(0.5)
"""
    )
    process = SupervisedProcess("slow to leave", start)
    process.start()
    start.next()
    process.terminate()
    deadline = time.monotonic() + 10
    while not signals.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.stop(10)
    assert signals.read_text() == "."


class WatchedLock:
    """A lock that reports when a thread is about to wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requested = threading.Event()

    def __enter__(self) -> None:
        self.requested.set()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_process_that_is_stopped_at_the_moment_of_its_start_is_not_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = PythonChildren(SLEEP_CODE)
    process, lock = SupervisedProcess("sleeper", start), WatchedLock()
    monkeypatch.setattr(process, "_lock", lock)
    with lock:
        lock.requested.clear()
        process.start()
        assert lock.requested.wait(10)  # the thread has seen that it may start the process
        process._stopping.set()  # what `terminate` does with the lock
    process.stop(10)
    assert start.pids == []
