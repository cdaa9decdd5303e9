"""What a worker does beside its tasks: forget jobs whose time is over, clear up after killed workers, keep
SQLite's log short."""

from __future__ import annotations

import time
from pathlib import Path

from sqlalchemy import Engine, select

from registry import db
from registry.artifacts import Store
from registry.jobs import jobs
from registry.jobs.tables import JobRow
from service import telemetry
from service.config import Settings
from service.worker.job_kind import discard

CHORES_S = 5.0
ORPHAN_S = 3600.0
"""A folder that no job needs, and a blob that is not whole, go when they were not written to for so long."""

log = telemetry.logger(__name__)


class Chores:
    def __init__(self, settings: Settings, engine: Engine, sessions: db.Sessions, store: Store) -> None:
        self._settings = settings
        self._engine = engine
        self._sessions = sessions
        self._store = store

    def step(self) -> None:
        """Do what is due now."""
        db.checkpoint(self._engine, self._settings.home)
        with db.reading(self._sessions) as session:
            over = jobs.any_expired(session)
        if over:
            with self._sessions.begin() as session:
                forgotten = jobs.delete_expired(session)
            for job_id in forgotten:
                discard(self._settings, job_id)
                log.info("job.forgotten", job=job_id)
        self._sweep()
        self._store.sweep(ORPHAN_S)  # what killed workers had assembled so far

    def _sweep(self) -> None:
        """Remove folders of jobs that are done or gone: a worker died before it did."""
        old = [int(f.name) for f in self._settings.jobs.glob("*") if f.name.isdecimal() and _is_old(f)]
        if not old:
            return
        with db.reading(self._sessions) as session:
            needed = set(
                session.scalars(select(JobRow.id).where(JobRow.id.in_(old), JobRow.state != jobs.DONE))
            )
        for job_id in set(old) - needed:
            discard(self._settings, job_id)


def _is_old(folder: Path) -> bool:
    try:
        return time.time() - folder.stat().st_mtime > ORPHAN_S
    except FileNotFoundError:  # its job was done just now
        return False
