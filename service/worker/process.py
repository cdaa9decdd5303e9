"""The worker process: `trivium worker`, and the child of `trivium serve`. Without FastAPI and Starlette."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

from registry import db, queue
from registry.artifacts import Store
from registry.vocabulary import RAY, SCORE, TRAIN
from service import telemetry
from service.builds.child_process import end_with_parent, stop_signal
from service.builds.forkserver import Forked, ForkServer
from service.config import Settings
from service.prepare import prepare
from service.runtime.isolated_runtime import IsolatedSpec
from service.runtime.loading import BulkLoader, is_shared
from service.runtime.without import numba_without_scipy
from service.submit import schedule_admission
from service.submit.engines import ray_is_installed
from service.worker import scheduler
from service.worker.job_kind import Work
from service.worker.lane_models import LaneModels
from service.worker.lanes import Worker
from service.worker.maintenance import CHORES_S, Chores
from service.worker.ray.engine import Engine, Spread
from service.worker.repeating import Repeating
from service.worker.score import Scoring
from service.worker.train.job import Training, in_children

NICE = 10
"""A server's predictions go first: where both want a processor, its worker's lanes get a tenth of it."""

STEP_S = 5.0
"""What a sweep at hand may take when the worker ends; it goes on where it was, in another."""

log = telemetry.logger(__name__)


class Forks:
    """The template that children are forked from, started by the first who needs one: most never do."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server = ForkServer()
        self._started = False
        self._lock = threading.Lock()

    def server(self) -> ForkServer:
        with self._lock:
            if not self._started:
                self._server.start()
                self._started = True
        return self._server

    def isolated(self, spec: IsolatedSpec) -> Forked:
        """The `Spawn` of `IsolatedRuntime`. Raises `Unavailable`."""
        return self.server().isolated(spec, self._settings.build_memory_mb)

    def stop(self) -> None:
        with self._lock:
            if self._started:
                self._server.stop()


def run(
    settings: Settings,
    stopped: Callable[[], object],
    up: Callable[[], object] = lambda: None,
    nice: int = 0,
) -> None:
    """Work until `stopped` returns; then give back what is unfinished. `up` is called once it works."""
    prepare(settings)
    engine = db.connect(settings.url, most_idle_s=queue.JOB_LEASE_S)
    sessions, store, forks = db.sessions(engine), Store(settings.blobs), Forks(settings)
    models = LaneModels(BulkLoader(sessions, store, forks.isolated, settings.predict_deadline_s), is_shared)
    scoring = Scoring(settings, sessions, store, models)
    fit = in_children(settings.build_timeout_s, forks.server)
    training = Training(settings, sessions, store, fit)
    works: dict[tuple[str, str], Work] = {
        (SCORE, "local"): scoring,
        (SCORE, RAY): scoring,  # planned and assembled as any other
        (TRAIN, "local"): training,
        (TRAIN, RAY): training,
    }
    kinds: dict[str, Spread] = {SCORE: scoring.spread, TRAIN: training.spread}
    spread = Engine(settings, sessions, kinds).run if ray_is_installed() else None
    worker = Worker(settings, sessions, works, spread, nice)
    start = schedule_admission.starter(store)
    beside = [
        Repeating("schedules", lambda: scheduler.step(sessions, start), scheduler.LOOK_S),
        Repeating("chores", Chores(settings, engine, sessions, store).step, CHORES_S),
    ]
    worker.start()
    for thread in beside:
        thread.start()
    log.info("worker.started", lanes=settings.batch_lanes)
    threading.Thread(target=_warm_up, name="warm-up", daemon=True).start()
    up()
    stopped()
    for thread in beside:
        thread.leave()
    worker.stop(settings.shutdown_grace_s)
    for thread in beside:
        thread.stop(STEP_S)
    models.close()
    forks.stop()
    engine.dispose()


def _warm_up() -> None:
    """What a first job would wait for, half a second, is loaded while there is none."""
    numba_without_scipy()
    import service.formats.plain_csv
    import service.runtime.forest_runtime  # noqa: F401


def child(parent: int, told: int) -> None:
    """The worker that a server keeps alive; it ends with its server, and its lanes let that go first. A
    byte into the pipe `told` says that it works."""
    stopped = stop_signal()
    end_with_parent(parent)
    telemetry.configure_logging()
    with os.fdopen(told, "wb", buffering=0) as pipe:
        run(Settings(), stopped, lambda: pipe.write(b"1"), NICE)


if __name__ == "__main__":
    child(int(sys.argv[1]), int(sys.argv[2]))
