"""Periodic threads of a worker: they survive failed steps and end with the worker."""

from __future__ import annotations

import threading

from service.worker.maintenance import PeriodicThread


def test_the_thread_continues_after_a_failed_step() -> None:
    repeated, count = threading.Event(), 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == 1:
            raise OSError("the disk is unavailable")
        repeated.set()

    periodic = PeriodicThread("tests", step, 0.001)
    periodic.start()
    assert repeated.wait(60)
    periodic.stop()


def test_stop_returns_after_the_timeout_while_the_step_continues() -> None:
    started, may_continue = threading.Event(), threading.Event()

    def step() -> None:
        started.set()
        assert may_continue.wait(60)

    periodic = PeriodicThread("slow", step, 0.001)
    periodic.start()
    assert started.wait(60)
    periodic.request_stop()
    periodic.stop(0.01)
    assert "slow" in {thread.name for thread in threading.enumerate()}
    may_continue.set()
    periodic.stop()


def test_stop_waits_for_the_current_step_and_no_other_starts() -> None:
    started, may_continue, finished = threading.Event(), threading.Event(), []

    def step() -> None:
        started.set()
        assert may_continue.wait(60)
        finished.append(1)

    periodic = PeriodicThread("tests", step, 0.001)
    periodic.start()
    assert started.wait(60)
    stopping = threading.Thread(target=periodic.stop)
    stopping.start()
    assert periodic._stopping.wait(60)
    may_continue.set()
    stopping.join(60)
    assert not stopping.is_alive()
    assert finished == [1]
    assert "tests" not in {thread.name for thread in threading.enumerate()}
