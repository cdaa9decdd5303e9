"""Actor on a node of the Ray cluster: runs one partition after another with the model loaded once."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import ray

from registry.artifacts import create_directory
from registry.errors import Changed, TriviumError, Unavailable, describe_error
from registry.jobs import jobs
from service.builds.forkserver import ForkServer
from service.submit.job_kinds import work_class
from service.worker.job_work import PartitionResult, PermanentFailure
from service.worker.ray.messages import ActorOrder, RayPartition, RayReport


class Actor:
    """Callable class for Ray Data: a batch of one `RayPartition` in, one `RayReport` out, both as JSON.

    It reports errors instead of raising them, because an error would end the whole job on Ray. Ray restarts
    an actor that died and gives its partition to another one.
    """

    def __init__(self, order: bytes) -> None:
        actor_order = msgspec.msgpack.decode(order, type=ActorOrder)
        self._directory = Path(actor_order.directory)
        self._run = work_class(actor_order.kind).on_ray(actor_order.shared, ForkServer())
        self._name = f"{ray.get_runtime_context().get_node_id()[:8]}:{os.getpid()}"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        partition = msgspec.json.decode(batch["partition"][0], type=RayPartition)
        return {"report": [msgspec.json.encode(self._report(partition)).decode()]}

    def _report(self, partition: RayPartition) -> RayReport:
        started = time.monotonic()
        result: PartitionResult | None = None
        message, is_permanent = None, False
        try:
            create_directory(self._directory, 0o700)
            base = f"{partition.stage}-{partition.number:06d}-{partition.fence}"
            with attempt(self._directory, base) as path:
                result = self._run(partition.part, path)
        except Exception as error:
            message = str(error) if isinstance(error, TriviumError) else describe_error(error)
            is_permanent = isinstance(error, PermanentFailure | Changed)
        return RayReport(
            stage=partition.stage,
            number=partition.number,
            worker=self._name,
            seconds=time.monotonic() - started,
            rows=0 if result is None else result.rows,
            failed=0 if result is None else result.failed,
            result=None if result is None else result.result,
            error=message,
            is_permanent=is_permanent,
        )


@contextmanager
def attempt(directory: Path, base: str) -> Iterator[Path]:
    """Yield a unique path for the files of one attempt.

    Ray may run a partition twice at the same time if it loses the connection to a node. Raises `Unavailable`
    if too many processes died on this partition: Ray itself would retry without end.
    """
    deaths = len(list(directory.glob(f".{base}-*.begun")))
    if deaths >= jobs.MAX_LOST_WORKERS:
        raise Unavailable(f"{deaths} processes died on this partition")
    name = f"{base}-{secrets.token_hex(4)}"
    marker = directory / f".{name}.begun"
    marker.touch()
    try:
        yield directory / name
    finally:
        marker.unlink(missing_ok=True)
