"""Builds: claim a version's task, have a child build it, record what came of it.

The queue makes a build survive its server: a task whose lease runs out is claimed again, here or by
another server, and an answer that comes too late changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from registry import db, queue, versions
from registry.artifacts import Store
from registry.build.job import BuildJob, Built, Format
from registry.errors import NotFound, StaleTask, Unavailable
from service import telemetry
from service.builds import oneshot
from service.builds.forkserver import Forked, ForkServer
from service.config import Settings

if TYPE_CHECKING:  # numpy comes with the first model, not with the start
    from service.runtime.isolated import IsolatedSpec

KINDS = (versions.BUILD,)
POLL_S = 1.0
RETRY_S = 1.0
ERROR_S = 5.0
"""How long a build thread rests after an error that is not the model's, for instance of the database."""

log = telemetry.logger(__name__)


class Supervisor:
    """Starts, watches and ends every child that handles models. One for each server process."""

    def __init__(
        self, settings: Settings, sessions: db.Sessions, store: Store, on_change: Callable[[], None]
    ) -> None:
        """`on_change` is called, in a build thread, after each version that was built or rejected."""
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._on_change = on_change
        self._tmp = settings.home.absolute() / "tmp"
        self._tmp.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._forks = ForkServer()
        self._stopping = threading.Event()
        self._work = threading.Semaphore(0)  # released when there may be a task
        self._threads = [
            threading.Thread(target=self._loop, name=f"build {n}", daemon=True)
            for n in range(settings.build_concurrency)
        ]

    def start(self) -> None:
        """Start the template and the build threads; returns at once."""
        sweep(self._tmp, older_than_s=self._settings.build_timeout_s + 60.0)
        self._forks.start()
        for thread in self._threads:
            thread.start()

    def stop(self, grace_s: float) -> None:
        """End every child. Unfinished builds go back to the queue, for the next server to take."""
        self._stopping.set()
        self._work.release(len(self._threads))
        self._forks.stop(grace_s)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(grace_s)

    def problem(self) -> str | None:
        """Why no model can be built; None while the template is starting or usable."""
        return self._forks.problem()

    def wake(self) -> None:
        """Look for a task now: one was enqueued."""
        self._work.release()

    def spawn_isolated(self, spec: IsolatedSpec) -> Forked:
        """A child that loads `spec` (the `Spawn` of `IsolatedRuntime`). Raises `Unavailable`."""
        return self._forks.isolated(spec, self._settings.build_memory_mb)

    def step(self) -> bool:
        """Do one build, if one is due. False when there was none."""
        with self._sessions.begin() as session:
            given_up = queue.expired(session, KINDS)
            for task in given_up:
                reason = f"each of the {task.attempt} builds of this model ended with its server"
                with contextlib.suppress(NotFound):  # it was deleted meanwhile
                    versions.reject(session, int(task.subject), reason)
            claimed = queue.claim(session, KINDS, _worker())
            telemetry.BUILD_QUEUE.set(queue.depth(session, KINDS))
        if given_up:
            self._on_change()
        if claimed is None:
            return False
        try:
            self._do(claimed)
        except (StaleTask, NotFound) as gone:  # built elsewhere meanwhile, or deleted
            log.info("build.dropped", task=claimed.id, version_id=claimed.subject, why=str(gone))
        except oneshot.Lost as lost:
            if self._stopping.is_set():
                self._postpone(claimed, "the server is shutting down")
            else:
                self._give_back(claimed, str(lost))
        except Unavailable as problem:  # no child can be started: that is not the model's fault
            self._postpone(claimed, str(problem))
            return False
        return True

    def _do(self, task: queue.Task) -> None:
        log.info("build.started", task=task.id, version_id=task.subject, attempt=task.attempt)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="build-", dir=self._tmp, ignore_cleanup_errors=True) as out:
            with db.reading(self._sessions) as session:
                inputs = versions.build_inputs(session, int(task.subject))
            built = self._build(task, inputs, Path(out))
        self._record(task, built, time.monotonic() - started)

    def _build(self, task: queue.Task, inputs: versions.BuildInputs, out: Path) -> Built:
        try:
            job = self._job(inputs, out)
        except NotFound as missing:
            return oneshot.rejected(str(missing))
        timeout_s = self._settings.build_timeout_s
        built = oneshot.build(self._forks, job, timeout_s, lambda: self._beat(task))
        return built if built.servable is None else self._keep(built, out)

    def _job(self, inputs: versions.BuildInputs, out: Path) -> BuildJob:
        return BuildJob(
            artifact=str(self._store.path(inputs.artifact).absolute()),
            format=cast(Format, inputs.format),  # `versions.publish` has checked it
            out=str(out),
            example=str(self._store.path(inputs.example).absolute()) if inputs.example else None,
            example_media_type=inputs.example_media_type,
            target=inputs.target,
            signature=inputs.signature,
            memory_mb=self._settings.build_memory_mb,
        )

    def _beat(self, task: queue.Task) -> None:
        with self._sessions.begin() as session:
            queue.heartbeat(session, task.id, task.fence)

    def _keep(self, built: Built, out: Path) -> Built:
        """Put the servable file into the store. The child named it, so the name is not trusted."""
        file = out / Path(built.servable or "").name
        if file.is_symlink() or not file.is_file():
            return oneshot.rejected("the build's answer names a file that it did not write")
        return msgspec.structs.replace(built, servable=self._store.put_file(file).sha256)

    def _record(self, task: queue.Task, built: Built, seconds: float) -> None:
        with self._sessions.begin() as session:
            queue.finish(session, task.id, task.fence, {"state": built.state})
            version = versions.finish_build(session, int(task.subject), built)
            model, number = version.model.name, version.number
        telemetry.BUILDS.labels(built.state, built.runtime or "").inc()
        telemetry.BUILD_SECONDS.observe(seconds)
        if built.state == versions.READY and built.runtime == "isolated":
            telemetry.FALLBACKS.labels(model).inc()
        log.info(
            "build.finished",
            version=f"{model}:{number}",
            state=built.state,
            runtime=built.runtime,
            reason=built.report.get("reason"),
            seconds=round(seconds, 2),
        )
        self._on_change()

    def _postpone(self, task: queue.Task, reason: str) -> None:
        """Put the task back with no attempt counted: another server may be able to, or this one later."""
        log.warning("build.postponed", task=task.id, version_id=task.subject, why=reason)
        with contextlib.suppress(StaleTask), self._sessions.begin() as session:
            queue.release(session, task.id, task.fence)

    def _give_back(self, task: queue.Task, reason: str) -> None:
        """Let the task be tried again; when it has no attempt left, the version is rejected."""
        try:
            with self._sessions.begin() as session:
                if again := queue.fail(session, task.id, task.fence, reason, RETRY_S):
                    log.warning("build.lost", task=task.id, version_id=task.subject, why=reason)
                else:
                    versions.reject(session, int(task.subject), reason)
        except (StaleTask, NotFound) as gone:
            log.info("build.dropped", task=task.id, version_id=task.subject, why=str(gone))
            return
        if not again:
            self._on_change()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                worked = self.step()
            except Exception:
                log.exception("build.thread_failed")
                self._stopping.wait(ERROR_S)
                continue
            if not worked:
                self._work.acquire(timeout=POLL_S)


def sweep(tmp: Path, older_than_s: float) -> None:
    """Remove the directories of builds that were killed: older than any build may run."""
    for left in tmp.glob("build-*"):
        try:
            age = time.time() - left.stat().st_mtime
        except FileNotFoundError:  # another process swept it
            continue
        if age > older_than_s:
            shutil.rmtree(left, ignore_errors=True)


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}"
