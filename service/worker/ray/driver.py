"""Driver process of Ray: sends partitions to actors and their reports to the engine as they finish.

It ends with the engine's process. When SIGTERM ends it, it also ends the Ray that it started.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import ray
import ray.data

from service.builds.process_signals import end_with_parent
from service.worker.ray.actor import Actor
from service.worker.ray.messages import ActorOrder, RayOrder

OBJECT_STORE_BYTES = 128 * 2**20
"""Size of Ray's object store on this machine. Only partition inputs and reports pass through it."""


def main() -> None:
    """argv: pid of the engine's process, file descriptor of the pipe for reports. The order is on stdin."""
    parent, pipe = map(int, sys.argv[1:])
    os.set_inheritable(pipe, False)  # a process that outlives the driver would keep the pipe open
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # until Ray installs its own handler
    end_with_parent(parent, signal.SIGTERM)
    atexit.register(_delete_directory, parent)  # registered first, so it runs last, after Ray has ended
    order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=RayOrder)
    with os.fdopen(pipe, "wb", buffering=0) as out:
        for report in run(order):
            out.write(report.encode() + b"\n")
    ray.shutdown()


def _delete_directory(parent: int) -> None:
    """Delete the working directory if the engine has died and cannot do it."""
    if os.getppid() != parent:
        shutil.rmtree(Path.cwd(), ignore_errors=True)


def run(order: RayOrder) -> Iterator[str]:
    """Yield reports as JSON, in the order in which the partitions finish."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if order.address is None:
        ray.init(
            address="local",
            num_cpus=order.local_actors,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=str(Path.cwd()),  # created and deleted by the engine
        )
    else:
        ray.init(address=order.address, log_to_driver=False, logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    cpus = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    size = max(1, min(int(cpus), len(order.partitions)))
    rows = [{"partition": msgspec.json.encode(p).decode()} for p in order.partitions]
    actor_order = ActorOrder(kind=order.kind, directory=order.directory, shared=order.shared)
    reports = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Actor,
        batch_size=1,
        fn_constructor_args=(msgspec.msgpack.encode(actor_order),),
        num_cpus=1,
        # One task per actor: a partition takes seconds, and a queued one would wait while other actors idle.
        compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
    )
    for row in reports.iter_rows():
        yield row["report"]
