"""What the web processes of one server share: a few bytes of memory, and a lock.

The memory holds the number of connections of each process, by which `service/acceptor.py` distributes new
connections, and why the template of the leader cannot be kept running. The process that holds the lock leads:
it alone does what a server does once, such as builds. When it ends, however it ends, the kernel releases the
lock, and another process leads.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
import tempfile

ABSENT = 2**63 - 1
"""Number of connections of a process that does not accept any: never the fewest."""
MAX_PROBLEM_BYTES = 1000


def create_shared_memory(size: int) -> int:
    """Return the descriptor of the memory of a group of `size` processes, of which none serves yet."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("web processes")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size * 8 + MAX_PROBLEM_BYTES)
    for number in range(size):
        mark_absent(descriptor, number)
    return descriptor


def mark_absent(descriptor: int, number: int) -> None:
    """Record that the process with this number (from 0) has ended."""
    os.pwrite(descriptor, ABSENT.to_bytes(8, sys.byteorder), number * 8)


class ProcessGroup:
    """One process's view of its group."""

    def __init__(self, descriptor: int, number: int, size: int) -> None:
        """`descriptor` is that of `create_shared_memory`; it is closed by `leave`."""
        self.number, self.size = number, size
        self._descriptor = descriptor
        memory = memoryview(mmap.mmap(descriptor, size * 8 + MAX_PROBLEM_BYTES))
        self._connections = memory[: size * 8].cast("q")
        self._problem = memory[size * 8 :]

    @classmethod
    def of_one(cls) -> ProcessGroup:
        """A process that serves alone, and leads."""
        return cls(create_shared_memory(1), 0, 1)

    def set_connections(self, count: int) -> None:
        """Record how many connections this process has."""
        self._connections[self.number] = count

    def fewest_connections(self) -> int:
        """Return the number of connections of the process with the fewest."""
        return min(self._connections)

    def try_to_lead(self) -> bool:
        """Lead if no other process does; return whether this process leads."""
        try:
            # a lock of the process, not of the descriptor, which all processes of the group have inherited
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def leave(self) -> None:
        """Let another process lead. The memory stays."""
        os.close(self._descriptor)

    @property
    def builder_problem(self) -> str | None:
        """Why the template of the leader cannot be kept running, or None."""
        return bytes(self._problem).rstrip(b"\0").decode(errors="ignore") or None

    @builder_problem.setter
    def builder_problem(self, problem: str | None) -> None:
        text = (problem or "").encode()[:MAX_PROBLEM_BYTES]
        self._problem[:] = text.ljust(MAX_PROBLEM_BYTES, b"\0")
