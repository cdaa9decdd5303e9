"""Cores for the server and the load generator, and the CPU time and memory of a server's processes."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

CPU_INFO = Path("/proc/cpuinfo")
SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"

BUSY = 0.5
"""A load average above this disturbs the figures."""


@dataclass(frozen=True)
class Cores:
    """The core of the server and that of the load generator; None where they cannot be pinned apart."""

    server: int | None
    load: int | None

    def __str__(self) -> str:
        if self.server is None or self.load is None:
            return "server and load generator are not pinned: this machine has one core, or no affinity"
        note = ""
        if _siblings(self.server) & {self.load}:
            note = ", two threads of one physical core, which slow each other down"
        return f"server on core {self.server}, load generator on core {self.load}{note}"


def choose_cores() -> Cores:
    """Return two cores of different physical cores where there are some."""
    if not hasattr(os, "sched_getaffinity"):
        return Cores(None, None)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return Cores(None, None)
    server = cores[-1]
    apart = [core for core in cores if core not in _siblings(server)]
    return Cores(server, (apart or cores)[0])


def _siblings(core: int) -> set[int]:
    """Return the threads of the same physical core: "0-1" and "0,4" in the kernel's file."""
    try:
        text = Path(SIBLINGS.format(core)).read_text().strip()
    except OSError:
        return {core}
    return {
        number
        for part in text.split(",")
        for number in range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1)
    }


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Run this process, and the children that it starts meanwhile, on one core."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class Memory:
    """Memory of all processes of a server in MB: private to them (USS), and with shared pages (RSS)."""

    uss_mb: float
    rss_mb: float
    processes: int


class ProcessTree:
    """A server's process and its descendants. Only one server runs at a time: the others are stopped."""

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)

    def processes(self) -> list[psutil.Process]:
        try:
            return [self.root, *self.root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def is_running(self) -> bool:
        return bool(self.root.is_running() and self.root.status() != psutil.STATUS_ZOMBIE)

    def suspend(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def cpu_seconds(self) -> float:
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory(self) -> Memory:
        uss, rss, count = 0, 0, 0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                usage = process.memory_full_info()
                uss, rss, count = uss + usage.uss, rss + usage.rss, count + 1
        return Memory(round(uss / 1e6, 1), round(rss / 1e6, 1), count)

    def await_idle(self, quiet_s: float, limit_s: float) -> bool:
        """Wait until the server uses under 5 % of a core for `quiet_s`; return whether it did in `limit_s`.

        After a load, it still works on requests whose connections the load generator closed. On a busy
        machine, a thread that waits for a core uses none either, but it is runnable.
        """
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            before = self.cpu_seconds()
            time.sleep(quiet_s)
            is_quiet = self.cpu_seconds() - before <= max(0.05 * quiet_s, 0.011)  # a clock tick is 10 ms
            if is_quiet and not any(map(_has_runnable_thread, self.processes())):
                return True
        return False


def _has_runnable_thread(process: psutil.Process) -> bool:
    for path in Path(f"/proc/{process.pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            if path.read_text().rpartition(")")[2].split()[0] == "R":
                return True
    return False


def stop(trees: list[ProcessTree], grace_s: float = 10.0) -> None:
    """End all processes at once with SIGTERM, then those that are left with SIGKILL."""
    processes = [process for tree in trees for process in tree.processes()]
    for tree in trees:
        tree.resume()
        with contextlib.suppress(psutil.NoSuchProcess):
            tree.root.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=grace_s)


@dataclass(frozen=True)
class Machine:
    """What a reader needs to compare the figures with another machine."""

    processor: str
    cores: int
    memory_gb: int
    system: str
    python: str
    pinning: str
    load_before: float
    """Load average when the run started."""

    def record(self) -> dict[str, Any]:
        return asdict(self)


def describe(cores: Cores) -> Machine:
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_gb=round(psutil.virtual_memory().total / 2**30),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        pinning=str(cores),
        load_before=round(os.getloadavg()[0], 1),
    )


def _processor() -> str:
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
