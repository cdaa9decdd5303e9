"""What engine, driver and actors say to each other: plain data, no Ray.

Nobody is told more than paths and what a partition needs: no key, and no address of the database.
"""

from __future__ import annotations

from typing import Any

import msgspec

from service.runtime.loading import Found


class Shared(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What all partitions of a job have in common. Paths are absolute, and the same on every node."""

    home: str  # the job's folder, where parts are written


class Scores(Shared, frozen=True, kw_only=True, tag=True):
    """Of a scoring. A part is a `files.Part`."""

    spec: dict[str, Any]  # of the job
    dataset: dict[str, Any]
    version: Found
    blobs: str
    deadline_s: float  # of a call of an isolated model
    memory_mb: int  # that an isolated model may use


class Steps(Shared, frozen=True, kw_only=True, tag=True):
    """Of a training. A part is a `Step`, which says how much memory it may use."""

    timeout_s: float


Descriptor = dict[str, Any]
"""What to do for a partition, in plain data."""


class Part(msgspec.Struct, frozen=True):
    stage: str
    number: int
    fence: int  # of the task
    part: Descriptor


class Order(msgspec.Struct, frozen=True):
    """What the driver is to do."""

    address: str | None  # of a cluster; None: Ray is started on this machine, and ended
    actors: int  # on this machine; a cluster has as many as it has CPUs
    shared: Scores | Steps
    parts: list[Part]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A partition that was done, or could not be: then `error` says why."""

    stage: str
    number: int
    worker: str  # node and process
    seconds: float
    rows: int = 0
    failed: int = 0
    result: dict[str, Any] | None = None
    error: str | None = None
    hopeless: bool = False  # no further attempt can help
