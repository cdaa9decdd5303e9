"""The build supervisor: claims builds, exports and checks, runs each in a child, and records the result.

Tasks survive their server: one whose lease expires is claimed again, here or by another server, and a result
that arrives too late changes nothing.
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
from typing import Any

from registry import db, queue
from registry.artifacts import Store
from registry.errors import NotFound, StaleTask, Unavailable
from registry.vocabulary import SUPERVISOR_TASKS
from service import telemetry
from service.builds import oneshot
from service.builds.forkserver import ForkServer
from service.builds.task_kinds import BuildTasks, ExportTasks, TaskKind
from service.builds.verify_tasks import VerifyTasks
from service.config import Settings

POLL_S = 1.0
TEMPLATE_DELAY_S = 3.0
"""The template starts this long after the server: its imports would slow down the first requests."""
RETRY_S = 1.0
MAX_LOST_ATTEMPTS = 3
"""Reject after this many lost children: the model is probably too large for the machine."""
ERROR_S = 5.0
"""Pause of a build thread after an error that the model did not cause, for example of the database."""

log = telemetry.logger(__name__)


class Supervisor:
    """Starts, watches and ends every child that handles models.

    Each web process has one, for its isolated models. Only that of the leader is started, and builds.
    """

    def __init__(
        self,
        settings: Settings,
        sessions: db.Sessions,
        store: Store,
        on_change: Callable[[], None],
        forks: ForkServer | None = None,
    ) -> None:
        """`on_change` is called in a build thread when a version or export has become ready or rejected,
        or was checked.

        `forks` is started and stopped with the supervisor; the default is a new one.
        """
        self._settings = settings
        self._sessions = sessions
        self._on_change = on_change
        self._tmp = settings.home.absolute() / "tmp"
        self._tmp.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.forks = forks or ForkServer()  # also forks the children of isolated models
        self._kinds: dict[str, TaskKind[Any]] = {
            kind.kind: kind(settings, sessions, store, self.forks)
            for kind in (BuildTasks, ExportTasks, VerifyTasks)
        }
        self._stopping = threading.Event()
        self._template_timer = threading.Timer(TEMPLATE_DELAY_S, self.forks.start)
        self._template_timer.daemon = True
        self._wake = threading.Semaphore(0)  # released when there may be a task
        self._threads = [
            threading.Thread(target=self._run, name=f"build {n}", daemon=True)
            for n in range(settings.build_concurrency)
        ]

    def start(self) -> None:
        """Start the build threads, and the template later or with the first child; returns at once."""
        delete_abandoned(self._tmp, older_than_s=self._settings.build_timeout_s + 60.0)
        self._template_timer.start()
        for thread in self._threads:
            thread.start()

    def stop(self, grace_s: float) -> None:
        """End every child. Unfinished tasks return to the queue, for the next server to claim."""
        self._stopping.set()
        self._template_timer.cancel()
        self._wake.release(len(self._threads))
        self.forks.stop(grace_s)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(grace_s)

    def wake(self) -> None:
        """Look for a task now: one was enqueued. No effect before `start`."""
        if self._threads[0].ident is not None:
            self._wake.release()

    def step(self) -> bool:
        """Run one build or export, if one is due. Return whether one was."""
        with db.reading(self._sessions) as session:  # polling must not take the write lock
            telemetry.BUILD_QUEUE.set(queue.depth(session, SUPERVISOR_TASKS))
            if not queue.has_claimable(session, SUPERVISOR_TASKS):
                return False
        with self._sessions.begin() as session:
            failed = queue.fail_lost(session, SUPERVISOR_TASKS)
            if failed is not None:
                attempts = f"{failed.deaths} attempts to {failed.kind} this model"
                reason = f"the server stopped during {attempts}"
                with contextlib.suppress(NotFound):  # it was deleted meanwhile
                    self._kinds[failed.kind].reject(session, int(failed.subject), reason)
            task = queue.claim(session, SUPERVISOR_TASKS, _worker_name())
        if failed is not None:
            self._on_change()
        if task is None:
            return False
        try:
            self._do(task)
        except (StaleTask, NotFound) as error:  # finished by another server meanwhile, or deleted
            self._drop(task, str(error))
        except oneshot.ChildLost as error:
            if self._stopping.is_set():
                self._postpone(task, "the server is shutting down")
            else:
                self._retry(task, str(error))
        except Unavailable as error:  # no child can be started: the model is not the cause
            self._postpone(task, str(error))
            return False
        return True

    def _do(self, task: queue.ClaimedTask) -> None:
        log.info(f"{task.kind}.started", **_log_fields(task), attempt=task.attempt)
        started = time.monotonic()
        kind, subject = self._kinds[task.kind], int(task.subject)
        with tempfile.TemporaryDirectory(prefix="build-", dir=self._tmp, ignore_cleanup_errors=True) as out:
            result = kind.run(subject, Path(out), lambda: self._heartbeat(task))
        with self._sessions.begin() as session:
            queue.finish(session, task.id, task.fence, {"state": result.state})
            name = kind.record(session, subject, result)
        seconds = time.monotonic() - started
        log.info(f"{task.kind}.finished", **kind.observe(name, result, seconds), seconds=round(seconds, 2))
        self._on_change()

    def _heartbeat(self, task: queue.ClaimedTask) -> None:
        with self._sessions.begin() as session:
            queue.heartbeat(session, task.id, task.fence)

    def _drop(self, task: queue.ClaimedTask, reason: str) -> None:
        """Fail a task whose result is not needed any more, so that no server claims it again."""
        log.info(f"{task.kind}.dropped", **_log_fields(task), reason=reason)
        with contextlib.suppress(StaleTask), self._sessions.begin() as session:
            queue.fail(session, task.id, task.fence, reason)

    def _postpone(self, task: queue.ClaimedTask, reason: str) -> None:
        """Return the task to the queue without counting the attempt: a later one may succeed."""
        log.warning(f"{task.kind}.postponed", **_log_fields(task), reason=reason)
        with contextlib.suppress(StaleTask), self._sessions.begin() as session:
            queue.release(session, task.id, task.fence)

    def _retry(self, task: queue.ClaimedTask, reason: str) -> None:
        """Let the task be tried again; after its last attempt, reject its version or export."""
        retry_in_s = RETRY_S if task.attempt < MAX_LOST_ATTEMPTS else None
        try:
            with self._sessions.begin() as session:
                if is_retried := queue.fail(session, task.id, task.fence, reason, retry_in_s):
                    log.warning(f"{task.kind}.lost", **_log_fields(task), reason=reason)
                else:
                    self._kinds[task.kind].reject(session, int(task.subject), reason)
        except (StaleTask, NotFound) as error:
            self._drop(task, str(error))
            return
        if not is_retried:
            self._on_change()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                worked = self.step()
            except Exception:
                log.exception("build.thread_failed")
                self._stopping.wait(ERROR_S)
                continue
            if not worked:
                self._wake.acquire(timeout=POLL_S)


def delete_abandoned(tmp: Path, older_than_s: float) -> None:
    """Delete the directories of builds and exports that were killed: older than any may run."""
    for path in tmp.glob("build-*"):
        try:
            age_s = time.time() - path.stat().st_mtime
        except FileNotFoundError:  # another process deleted it
            continue
        if age_s > older_than_s:
            shutil.rmtree(path, ignore_errors=True)


def _log_fields(task: queue.ClaimedTask) -> dict[str, object]:
    return {"task": task.id, "subject": task.subject}


def _worker_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}"
