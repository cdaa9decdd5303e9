"""SIGINT and SIGTERM end the demo and its server at any point."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT_S = 1.0
"""A signal this soon after another one is ignored: `timeout` and terminals send two."""

_last_signal_time = -REPEAT_S
_stop_signal: int | None = None


def install_handlers() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, _exit)


def _exit(number: int, _: object) -> None:
    global _stop_signal
    if _is_new():
        _stop_signal = number
        check_stopped()


def check_stopped() -> None:
    """Exit if a signal has arrived. Call it in loops and between steps.

    CPython discards the exception of a signal handler that runs inside a destructor or a callback of the
    garbage collector; without this check the signal would be lost.
    """
    if _stop_signal is not None:
        sys.exit(128 + _stop_signal)  # the exit code that shells use for a signal


def _is_new() -> bool:
    """Return whether the last signal is older than `REPEAT_S`. Call it when the signal arrives."""
    global _last_signal_time
    previous, _last_signal_time = _last_signal_time, time.monotonic()
    return _last_signal_time - previous > REPEAT_S


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Run the block without interruption; a signal takes effect at its end.

    An exception from a signal handler could leave a started process without a reference to it, and CPython
    discards such exceptions in some places, for example between fork and exec.
    """
    pending: list[int] = []

    def remember(number: int, _: Any) -> None:
        if _is_new():
            pending.append(number)

    handlers = {number: signal.signal(number, remember) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if pending:
        sys.exit(128 + pending[0])
