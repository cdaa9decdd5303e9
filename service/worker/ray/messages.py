"""Messages between the engine, the driver and the actors: plain data without Ray types.

They contain paths and the input of partitions, but no key and no database address.
"""

from __future__ import annotations

from typing import Any

import msgspec


class RayPartition(msgspec.Struct, frozen=True):
    stage: str
    number: int
    fence: int  # of the task
    part: dict[str, Any]  # an entry of `RayInput.parts`


class RayOrder(msgspec.Struct, frozen=True, kw_only=True):
    """The work of one driver."""

    address: str | None  # of a cluster; None: start and end Ray on this machine
    local_actors: int  # for Ray on this machine; on a cluster there is one actor per CPU
    kind: str  # of the job
    directory: str  # of the job: an absolute path that is the same on every node
    shared: dict[str, Any]  # `RayInput.shared`
    partitions: list[RayPartition]


class ActorOrder(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `RayOrder` that every actor receives."""

    kind: str
    directory: str
    shared: dict[str, Any]


class RayReport(msgspec.Struct, frozen=True, kw_only=True):
    """A finished partition, or a failed one with its `error`."""

    stage: str
    number: int
    worker: str  # node and process
    seconds: float
    rows: int = 0
    failed: int = 0
    result: dict[str, Any] | None = None
    error: str | None = None
    is_permanent: bool = False  # retrying cannot help
