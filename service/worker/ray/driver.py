"""The process that Ray knows: it hands descriptors to actors, and their reports to the engine as they come.

It ends with the engine's process. Ended by SIGTERM it takes along the Ray that it has started.
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

from service.builds.child_process import end_with_parent
from service.worker.ray.actor import Actor
from service.worker.ray.messages import Order

STORE_BYTES = 128 * 2**20
"""Of Ray's object store on this machine: descriptors and reports are all that goes through it."""


def main() -> None:
    """argv: the engine's process, and the pipe for the reports; the order is on stdin."""
    parent, pipe = map(int, sys.argv[1:])
    os.set_inheritable(pipe, False)  # else what outlives us would hold it open
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # until Ray has its own way of that
    end_with_parent(parent, signal.SIGTERM)
    atexit.register(_clean, parent)  # first registered, last called: after Ray has ended
    order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Order)
    with os.fdopen(pipe, "wb", buffering=0) as out:
        for report in run(order):
            out.write(report.encode() + b"\n")
    ray.shutdown()


def _clean(parent: int) -> None:
    """Do what the engine cannot do any more."""
    if os.getppid() != parent:
        shutil.rmtree(Path.cwd(), ignore_errors=True)


def run(order: Order) -> Iterator[str]:
    """Reports in JSON, in the order in which partitions are done."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if order.address is None:
        ray.init(
            address="local",
            num_cpus=order.actors,
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=str(Path.cwd()),  # the engine has made it for this, and removes it
        )
    else:
        ray.init(address=order.address, log_to_driver=False, logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    cpus = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    size = max(1, min(int(cpus), len(order.parts)))
    parts = [{"part": msgspec.json.encode(part).decode()} for part in order.parts]
    reports = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        Actor,
        batch_size=1,
        fn_constructor_args=(msgspec.msgpack.encode(order.shared),),
        num_cpus=1,
        # one at a time: a partition takes seconds, and what is queued behind it would wait while others idle
        compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
    )
    for row in reports.iter_rows():
        yield row["report"]
