"""Recurring duties of a worker: threads that repeat a step, and the maintenance of the data directory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine, select

from registry import db
from registry.artifacts import Store
from registry.jobs import jobs
from registry.jobs.tables import JobRow
from service import telemetry
from service.config import Settings
from service.worker.job_work import delete_job_directory

MAINTENANCE_S = 5.0
"""Pause between two maintenance steps."""
ORPHAN_S = 3600.0
"""Directories of finished jobs and incomplete blobs are deleted this long after their last write."""

log = telemetry.logger(__name__)


class PeriodicThread:
    """A thread that calls `step` every `interval_s` seconds.

    Exceptions are logged and do not end it: the database or the disk may become available again.
    """

    def __init__(self, name: str, step: Callable[[], object], interval_s: float) -> None:
        self._name, self._step, self._interval_s = name, step, interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def request_stop(self) -> None:
        """Let the current step be the last one."""
        self._stopping.set()

    def stop(self, timeout_s: float | None = None) -> None:
        """Wait until the current step has ended, at most `timeout_s` seconds."""
        self.request_stop()
        self._thread.join(timeout_s)

    def _loop(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                self._step()
            except Exception:
                log.exception(f"{self._name}.failed")


class Maintenance:
    """Deletes expired jobs and the files that killed workers left, and keeps SQLite's WAL file short."""

    def __init__(self, settings: Settings, engine: Engine, sessions: db.Sessions, store: Store) -> None:
        self._settings = settings
        self._engine = engine
        self._sessions = sessions
        self._store = store

    def step(self) -> None:
        db.checkpoint(self._engine, self._settings.home)
        with db.reading(self._sessions) as session:
            has_expired = jobs.any_expired(session)
        if has_expired:
            with self._sessions.begin() as session:
                deleted_ids = jobs.delete_expired(session)
            for job_id in deleted_ids:
                delete_job_directory(self._settings, job_id)
                log.info("job.deleted", job=job_id)
        self._delete_orphaned_directories()
        self._store.sweep(ORPHAN_S)  # incomplete blobs of killed workers

    def _delete_orphaned_directories(self) -> None:
        """Delete directories of finished and deleted jobs, which a worker that died left behind."""
        old_ids = [
            int(d.name) for d in self._settings.jobs_directory.glob("*") if d.name.isdecimal() and _is_old(d)
        ]
        if not old_ids:
            return
        with db.reading(self._sessions) as session:
            unfinished = select(JobRow.id).where(JobRow.id.in_(old_ids), JobRow.state != jobs.DONE)
            unfinished_ids = set(session.scalars(unfinished))
        for job_id in set(old_ids) - unfinished_ids:
            delete_job_directory(self._settings, job_id)


def _is_old(directory: Path) -> bool:
    try:
        return time.time() - directory.stat().st_mtime > ORPHAN_S
    except FileNotFoundError:  # its job has just been finished
        return False
