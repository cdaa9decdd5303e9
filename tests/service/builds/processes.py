"""Watching processes that are not ours: no polling, the kernel says when they end."""

from __future__ import annotations

import os
import select


def ends(pid: int, within_s: float = 10.0) -> bool:
    """Wait for any process of this machine to end."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(within_s * 1000))
    finally:
        os.close(descriptor)


def alive(pid: int) -> bool:
    return not ends(pid, within_s=0.0)
