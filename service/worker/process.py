"""The worker process: `trivium worker`, and the child process of `trivium serve`.

It imports neither FastAPI nor Starlette.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable

from registry import db, queue
from registry.artifacts import Store
from registry.vocabulary import JOB_KINDS
from service import startup, telemetry
from service.builds.forkserver import ForkServer
from service.builds.process_signals import end_with_parent, stop_signal
from service.config import Settings
from service.prediction_log.log_maintenance import LOG_STEP_S, LogMaintenance
from service.prepare import prepare
from service.runtime.isolated_runtime import Isolation
from service.runtime.loading import BulkLoader, is_shared
from service.submit.admission import ray_is_installed
from service.submit.job_kinds import scheduled_job_starter, work_class
from service.worker import scheduler
from service.worker.job_work import JobWork, WorkContext
from service.worker.lane_models import LaneModels
from service.worker.lanes import Worker
from service.worker.maintenance import MAINTENANCE_S, Maintenance, PeriodicThread
from service.worker.ray.engine import RayEngine

CHILD_NICE = 10
"""Priority of a server's worker: if both need a core, its lanes get a tenth of it, predictions the rest."""

STEP_GRACE_S = 5.0
"""Time that a scheduler or maintenance step may take at shutdown. Another worker continues it."""

log = telemetry.logger(__name__)


def run(
    settings: Settings,
    wait_for_stop: Callable[[], object],
    on_started: Callable[[], object] = lambda: None,
    nice: int = 0,
) -> None:
    """Run a worker until `wait_for_stop` returns, then release its unfinished tasks.

    Calls `on_started` once the lanes run. `nice`: process priority of the lanes.
    """
    prepare(settings)
    engine = db.connect(settings.url, max_idle_s=queue.JOB_LEASE_S)
    sessions, store, forks = db.sessions(engine), Store(settings.blobs), ForkServer()
    isolation = Isolation(
        lambda: forks.fork("isolated"), settings.build_memory_mb, settings.predict_deadline_s
    )
    loader = BulkLoader(sessions, store, isolation)
    models = LaneModels(loader, is_shared, loader.fallback)
    context = WorkContext(settings, sessions, store, models, forks)
    works: dict[str, JobWork] = {kind: work_class(kind)(context) for kind in JOB_KINDS}
    run_on_ray = RayEngine(settings, sessions, works).run if ray_is_installed() else None
    worker = Worker(settings, sessions, works, run_on_ray, nice)
    start_job = scheduled_job_starter(store)
    maintenance = Maintenance(settings, engine, sessions, store)
    log_maintenance = LogMaintenance(settings.predictions_directory, sessions)
    periodic_threads = [
        PeriodicThread("schedules", lambda: scheduler.step(sessions, start_job), scheduler.POLL_S),
        PeriodicThread("maintenance", maintenance.step, MAINTENANCE_S),
        PeriodicThread("prediction-logs", log_maintenance.step, LOG_STEP_S),
    ]
    worker.start()
    for thread in periodic_threads:
        thread.start()
    log.info("worker.started", lanes=settings.batch_lanes)
    threading.Thread(target=_warm_up, name="warm-up", daemon=True).start()
    on_started()
    wait_for_stop()
    for thread in periodic_threads:
        thread.request_stop()
    worker.stop(settings.shutdown_grace_s)
    for thread in periodic_threads:
        thread.stop(STEP_GRACE_S)
    models.close()
    forks.stop()
    engine.dispose()


def _warm_up() -> None:
    """Import modules that take half a second, so that the first job need not wait for them."""
    startup.import_numba()
    import service.formats.fast_csv.blocks
    import service.runtime.forest_runtime  # noqa: F401
    from service.runtime import kernel_code
    from service.runtime.kernel_table import NotCompiled

    with contextlib.suppress(NotCompiled):  # the template or the first job compiles it
        kernel_code.load()


def run_child(parent: int, started_fd: int) -> None:
    """Run the worker of a server; it ends with the server's process `parent`.

    Writes a byte into the pipe `started_fd` once it runs. Its lanes have a lower priority than the server.
    """
    wait_for_stop = stop_signal()
    end_with_parent(parent)
    telemetry.configure_logging()
    with os.fdopen(started_fd, "wb", buffering=0) as pipe:
        run(Settings(), wait_for_stop, lambda: pipe.write(b"1"), CHILD_NICE)


if __name__ == "__main__":
    run_child(int(sys.argv[1]), int(sys.argv[2]))
