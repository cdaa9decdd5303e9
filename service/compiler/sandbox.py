"""What a child that handles an uploaded model may not do. The one place where such limits go."""

from __future__ import annotations

import resource


def confine(memory_mb: int) -> None:
    """Limit this process, for good, to `memory_mb` MiB of private memory, and forbid core dumps.

    Beyond it allocations fail with `MemoryError`. RLIMIT_DATA and not RLIMIT_AS: libraries reserve far
    more address space than they ever touch. Call it first thing in a child, never in the server.
    """
    limit = memory_mb * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def why(what: str, error: Exception, memory_mb: int) -> str:
    """Why `what` failed. An extension in C that gets no memory may forget to say so, of which Python makes a
    `SystemError`; the loader of libraries makes an `ImportError` of it."""
    limit = f"its limit of {memory_mb} MB (TRIVIUM_BUILD_MEMORY_MB)"
    if isinstance(error, MemoryError):
        return f"the {what} needs more memory than {limit}"
    said = f"the {what} failed: {type(error).__name__}: {error}"
    starved = isinstance(error, SystemError) or "failed to map segment" in said
    return f"{said}; it may need more memory than {limit}" if starved else said
