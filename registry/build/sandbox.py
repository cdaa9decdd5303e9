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
