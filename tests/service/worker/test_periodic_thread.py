"""What a worker does again and again: one failure does not end it, the worker's end does."""

from __future__ import annotations

import threading

from service.worker.maintenance import PeriodicThread


def test_a_step_that_fails_is_not_the_last_one() -> None:
    again, count = threading.Event(), 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == 1:
            raise OSError("the disk is away")
        again.set()

    periodic = PeriodicThread("tests", step, 0.001)
    periodic.start()
    assert again.wait(60)
    periodic.stop()


def test_who_cannot_wait_for_the_step_at_hand_goes_on_without_it() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def step() -> None:
        inside.set()
        assert go_on.wait(60)

    periodic = PeriodicThread("slow", step, 0.001)
    periodic.start()
    assert inside.wait(60)
    periodic.request_stop()
    periodic.stop(0.01)
    assert "slow" in {thread.name for thread in threading.enumerate()}
    go_on.set()
    periodic.stop()


def test_the_end_waits_for_the_step_at_hand_and_there_is_no_other_after_it() -> None:
    inside, go_on, done = threading.Event(), threading.Event(), []

    def step() -> None:
        inside.set()
        assert go_on.wait(60)
        done.append(1)

    periodic = PeriodicThread("tests", step, 0.001)
    periodic.start()
    assert inside.wait(60)
    stopping = threading.Thread(target=periodic.stop)
    stopping.start()
    assert periodic._stopping.wait(60)
    go_on.set()
    stopping.join(60)
    assert not stopping.is_alive()
    assert done == [1]
    assert "tests" not in {thread.name for thread in threading.enumerate()}
