from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from service.builds.supervised_process import CRASH_LOOP, SupervisedProcess
from tests.service.builds.processes import alive, ends

SLEEPS = "import time; print('up', flush=True); time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPS


class Python:
    """Starts python children that run `code`, and lets a test wait for each one to be up."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.pids: list[int] = []
        self._started = threading.Semaphore(0)

    def __call__(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", self.code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout:
            process.stdout.readline()
        self.pids.append(process.pid)
        self._started.release()
        return process

    def next(self) -> int:
        assert self._started.acquire(timeout=10)
        return self.pids[-1]


def test_a_killed_process_is_started_again_and_the_log_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    start = Python(SLEEPS)
    keeper = SupervisedProcess("sleeper", start)
    keeper.start()
    try:
        first = start.next()
        os.kill(first, signal.SIGKILL)
        assert start.next() != first
        assert keeper.problem() is None
        assert "sleeper" in (said := capsys.readouterr().out)
        assert "was ended by signal 9" in said
    finally:
        keeper.stop(5)


def test_stopping_ends_the_process_and_starts_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    start = Python(SLEEPS)
    keeper = SupervisedProcess("sleeper", start)
    keeper.start()
    pid = start.next()
    keeper.stop(5)
    assert not alive(pid)
    assert start.pids == [pid]
    assert "process.ended" not in capsys.readouterr().out
    assert keeper.pid is None


def test_a_process_deaf_to_sigterm_is_killed_after_the_grace() -> None:
    start = Python(DEAF)
    keeper = SupervisedProcess("deaf", start)
    keeper.start()
    pid = start.next()
    keeper.stop(0.2)
    assert ends(pid)


def test_several_are_told_to_end_before_any_is_waited_for() -> None:
    starts = [Python(SLEEPS), Python(SLEEPS)]
    keepers = [SupervisedProcess("sleeper", start) for start in starts]
    for keeper in keepers:
        keeper.start()
    pids = [start.next() for start in starts]
    for keeper in keepers:
        keeper.terminate()
    assert all(ends(pid) for pid in pids)
    for keeper in keepers:
        keeper.stop(5)


def test_a_crash_loop_is_a_problem_that_says_how_the_process_ends() -> None:
    start = Python("raise SystemExit(7)")
    keeper = SupervisedProcess("crasher", start)
    assert keeper.problem() is None
    keeper.start()
    for _ in range(CRASH_LOOP + 1):  # the one after has been started: the ones before have been counted
        start.next()
    assert (keeper.problem() or "").startswith("crasher ended with exit code 7")
    keeper.stop(5)


def test_a_command_that_does_not_exist_is_a_problem(tmp_path: Path) -> None:
    tried = threading.Semaphore(0)

    def start() -> subprocess.Popen[bytes]:
        tried.release()
        return subprocess.Popen([tmp_path / "nothing"])

    keeper = SupervisedProcess("nothing", start)
    keeper.start()
    assert all(tried.acquire(timeout=10) for _ in range(CRASH_LOOP + 1))
    assert "cannot be started" in (keeper.problem() or "")
    keeper.stop(5)


def test_a_keeper_that_was_never_started_can_be_stopped() -> None:
    SupervisedProcess("unborn", Python(SLEEPS)).stop(1)


def test_a_process_is_told_to_end_once(tmp_path: Path) -> None:
    """Several are ended together by `terminate`, then each by `stop`; a second signal would break off what
    the first one began."""
    told = tmp_path / "told"
    told.write_text("")
    start = Python(
        f"""
import pathlib, signal, time
told = pathlib.Path({str(told)!r})
signal.signal(signal.SIGTERM, lambda *_: told.write_text(told.read_text() + "."))
print("up", flush=True)
while not told.read_text():
    time.sleep(0.01)
time.sleep(0.5)
"""
    )
    keeper = SupervisedProcess("slow to leave", start)
    keeper.start()
    start.next()
    keeper.terminate()
    until = time.monotonic() + 10
    while not told.read_text() and time.monotonic() < until:
        time.sleep(0.01)
    keeper.stop(10)
    assert told.read_text() == "."
