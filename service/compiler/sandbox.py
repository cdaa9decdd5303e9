"""Limits of a child process that handles an uploaded model. The only place where such limits are set."""

from __future__ import annotations

import resource

from registry.errors import describe_error


def confine(memory_mb: int) -> None:
    """Limit this process, permanently, to `memory_mb` MiB of private memory, and forbid core dumps.

    Beyond the limit, allocations fail with `MemoryError`. RLIMIT_DATA and not RLIMIT_AS: libraries reserve
    far more address space than they use. Call it first in a child process, never in the server.
    """
    limit = memory_mb * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


_LACK_OF_MEMORY = ("failed to map segment", "Failed to launch worker thread", "can't start new thread")


def explain_failure(task: str, error: Exception, memory_mb: int) -> str:
    """The reason why `task` failed, and the memory limit where that may be the cause."""
    limit = f"its limit of {memory_mb} MB (TRIVIUM_BUILD_MEMORY_MB)"
    if isinstance(error, MemoryError):
        return f"the {task} needs more memory than {limit}"
    reason = f"the {task} failed: {describe_error(error)}"
    return f"{reason}; it may need more memory than {limit}" if may_lack_memory(error) else reason


def may_lack_memory(error: Exception) -> bool:
    """Whether the memory limit may be the cause of an error.

    A C extension that gets no memory may return without an exception, which Python reports as `SystemError`.
    The loader of shared libraries reports it as `ImportError`. A thread that gets no stack is not started.
    """
    if isinstance(error, MemoryError | SystemError):
        return True
    return any(text in str(error) for text in _LACK_OF_MEMORY)
