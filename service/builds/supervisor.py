"""Builds and exports: claim a task, have a child do it, record what came of it.

The queue makes either survive its server: a task whose lease runs out is claimed again, here or by
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
from typing import TYPE_CHECKING, Any

from registry import db, queue
from registry.artifacts import Store
from registry.errors import NotFound, StaleTask, Unavailable
from registry.vocabulary import SUPERVISOR_TASKS
from service import telemetry
from service.builds import oneshot
from service.builds.forkserver import Forked, ForkServer
from service.builds.task_kinds import Builds, Exports, Work
from service.config import Settings

if TYPE_CHECKING:  # numpy comes with the first model, not with the start
    from service.runtime.isolated_runtime import IsolatedSpec

POLL_S = 1.0
RETRY_S = 1.0
LOST_ATTEMPTS = 3
"""A child that keeps being killed under a living server is most likely too large for the machine."""
ERROR_S = 5.0
"""How long a build thread rests after an error that is not the model's, for instance of the database."""

log = telemetry.logger(__name__)


class Supervisor:
    """Starts, watches and ends every child that handles models. One for each server process."""

    def __init__(
        self, settings: Settings, sessions: db.Sessions, store: Store, on_change: Callable[[], None]
    ) -> None:
        """`on_change` is called, in a build thread, after each version or export that is made or rejected."""
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._on_change = on_change
        self._tmp = settings.home.absolute() / "tmp"
        self._tmp.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._forks = ForkServer()
        self._kinds: dict[str, Work[Any]] = {
            kind.kind: kind(settings, sessions, store, self._forks) for kind in (Builds, Exports)
        }
        self._stopping = threading.Event()
        self._waiting = threading.Semaphore(0)  # released when there may be a task
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
        """End every child. Unfinished work goes back to the queue, for the next server to take."""
        self._stopping.set()
        self._waiting.release(len(self._threads))
        self._forks.stop(grace_s)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(grace_s)

    def problem(self) -> str | None:
        """Why no model can be built; None while the template is starting or usable."""
        return self._forks.problem()

    def wake(self) -> None:
        """Look for a task now: one was enqueued."""
        self._waiting.release()

    def spawn_isolated(self, spec: IsolatedSpec) -> Forked:
        """A child that loads `spec` (the `Spawn` of `IsolatedRuntime`). Raises `Unavailable`."""
        return self._forks.isolated(spec, self._settings.build_memory_mb)

    def step(self) -> bool:
        """Do one build or export, if one is due. False when there was none."""
        with self._sessions.begin() as session:
            given_up = queue.fail_lost(session, SUPERVISOR_TASKS)
            if given_up is not None:
                reason = f"each of the {given_up.attempt} {given_up.kind}s of this model ended with its server"
                with contextlib.suppress(NotFound):  # it was deleted meanwhile
                    self._kinds[given_up.kind].reject(session, int(given_up.subject), reason)
            claimed = queue.claim(session, SUPERVISOR_TASKS, _worker())
            telemetry.BUILD_QUEUE.set(queue.depth(session, SUPERVISOR_TASKS))
        if given_up is not None:
            self._on_change()
        if claimed is None:
            return False
        try:
            self._do(claimed)
        except (StaleTask, NotFound) as gone:  # done elsewhere meanwhile, or deleted
            self._drop(claimed, str(gone))
        except oneshot.Lost as lost:
            if self._stopping.is_set():
                self._postpone(claimed, "the server is shutting down")
            else:
                self._give_back(claimed, str(lost))
        except Unavailable as problem:  # no child can be started: that is not the model's fault
            self._postpone(claimed, str(problem))
            return False
        return True

    def _do(self, task: queue.ClaimedTask) -> None:
        log.info(f"{task.kind}.started", **_named(task), attempt=task.attempt)
        started = time.monotonic()
        work, subject = self._kinds[task.kind], int(task.subject)
        with tempfile.TemporaryDirectory(prefix="build-", dir=self._tmp, ignore_cleanup_errors=True) as out:
            made = work.do(subject, Path(out), lambda: self._beat(task))
        with self._sessions.begin() as session:
            queue.finish(session, task.id, task.fence, {"state": made.state})
            name = work.record(session, subject, made)
        seconds = time.monotonic() - started
        log.info(f"{task.kind}.finished", **work.observe(name, made, seconds), seconds=round(seconds, 2))
        self._on_change()

    def _beat(self, task: queue.ClaimedTask) -> None:
        with self._sessions.begin() as session:
            queue.heartbeat(session, task.id, task.fence)

    def _drop(self, task: queue.ClaimedTask, why: str) -> None:
        """Nobody waits for it any more: nobody needs to claim it again."""
        log.info(f"{task.kind}.dropped", **_named(task), why=why)
        with contextlib.suppress(StaleTask), self._sessions.begin() as session:
            queue.fail(session, task.id, task.fence, why)

    def _postpone(self, task: queue.ClaimedTask, reason: str) -> None:
        """Put the task back with no attempt counted: another server may be able to, or this one later."""
        log.warning(f"{task.kind}.postponed", **_named(task), why=reason)
        with contextlib.suppress(StaleTask), self._sessions.begin() as session:
            queue.release(session, task.id, task.fence)

    def _give_back(self, task: queue.ClaimedTask, reason: str) -> None:
        """Let the task be tried again; when it has no attempt left, what it is for is rejected."""
        retry_in_s = RETRY_S if task.attempt < LOST_ATTEMPTS else None
        try:
            with self._sessions.begin() as session:
                if again := queue.fail(session, task.id, task.fence, reason, retry_in_s):
                    log.warning(f"{task.kind}.lost", **_named(task), why=reason)
                else:
                    self._kinds[task.kind].reject(session, int(task.subject), reason)
        except (StaleTask, NotFound) as gone:
            self._drop(task, str(gone))
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
                self._waiting.acquire(timeout=POLL_S)


def sweep(tmp: Path, older_than_s: float) -> None:
    """Remove the directories of work that was killed: older than any may run."""
    for left in tmp.glob("build-*"):
        try:
            age = time.time() - left.stat().st_mtime
        except FileNotFoundError:  # another process swept it
            continue
        if age > older_than_s:
            shutil.rmtree(left, ignore_errors=True)


def _named(task: queue.ClaimedTask) -> dict[str, object]:
    return {"task": task.id, f"{task.kind}_of": task.subject}


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}"
