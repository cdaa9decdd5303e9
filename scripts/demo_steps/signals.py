"""SIGINT and SIGTERM end the demo from wherever it is, and its server with it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)
AGAIN_S = 1.0
"""A signal so soon after another is the same wish: `timeout` and terminals send two."""

_last = -AGAIN_S


def take() -> None:
    for number in STOPS:
        signal.signal(number, _leave)


def _leave(number: int, _: object) -> None:
    if _is_new():
        sys.exit(128 + number)  # as a shell says it


def _is_new() -> bool:
    """Judged when a signal comes, not when it takes effect."""
    global _last
    before, _last = _last, time.monotonic()
    return _last - before > AGAIN_S


@contextmanager
def held() -> Iterator[None]:
    """No signal breaks into this block: one that comes meanwhile takes effect behind it.

    An exception out of a handler would leave a process that was started and has no name yet, and CPython
    swallows it in some places, for instance between fork and exec.
    """
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        if _is_new():
            came.append(number)

    before = {number: signal.signal(number, note) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        sys.exit(128 + came[0])
