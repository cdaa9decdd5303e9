"""Signals of the server's processes: a stop signal to wait for, and the end of a child with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def stop_signal() -> Callable[[], object]:
    """Handle SIGTERM and SIGINT from now on; the returned function waits for the first of them.

    A handler that sets a `threading.Event` can block on the event's own lock when a second signal arrives
    while it runs (9 of 200 processes hung). The interpreter's wakeup pipe takes no lock.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return lambda: os.read(reading, 1)


def end_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send `by` to this process when the thread of `parent` that started it ends.

    A child calls it first. Linux only: elsewhere a child detects its parent's end by a closed socket, if it
    has one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, by, 0, 0, 0)
        if os.getppid() != parent:  # the parent ended before the call
            os._exit(1)


def outlive_parent() -> None:
    """Undo `end_with_parent`: the child ends its own children before it ends itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
