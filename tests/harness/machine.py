"""Free ports, CPU time of processes, and a description of this machine."""

from __future__ import annotations

import os
import platform
import socket

import psutil


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(process: psutil.Process) -> float:
    """Return user and system time of a process and all its descendants."""
    times = [p.cpu_times() for p in [process, *process.children(recursive=True)]]
    return float(sum(t.user + t.system for t in times))


def describe_machine() -> str:
    """Return Python's version, the number of cores and the load in one line."""
    return f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
