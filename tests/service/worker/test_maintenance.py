"""What a worker does beside its tasks: what nobody wants any more goes, and nothing else."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, update

from registry import db
from registry.artifacts import Store
from registry.db import Sessions
from registry.jobs import jobs
from registry.jobs.jobs import NewJob
from registry.jobs.tables import JobRow
from registry.tables import now
from registry.vocabulary import SCORE
from service.config import Settings
from service.worker.maintenance import ORPHAN_S, Maintenance


class Home:
    def __init__(self, engine: Engine, sessions: Sessions, home: Path) -> None:
        self.sessions, self.settings = sessions, Settings(home=home)
        self.maintenance = Maintenance(self.settings, engine, sessions, Store(home / "blobs"))

    def job(self, state: str, *, over: bool = False, silent_s: float = 0.0) -> int:
        """A job with a folder that was last written to so many seconds ago."""
        with self.sessions.begin() as session:
            job = jobs.create(session, NewJob(kind=SCORE, spec={}, model="m"), by="ann")
            if state != jobs.QUEUED:
                jobs.end(session, job, state)
            job_id = job.id
        if over:
            with self.sessions.begin() as session:
                past = now() - timedelta(seconds=1)
                session.execute(update(JobRow).where(JobRow.id == job_id).values(expires_at=past))
        self.folder(job_id, silent_s)
        return job_id

    def folder(self, job_id: int, silent_s: float) -> None:
        place = self.settings.job_directory(job_id)
        place.mkdir(parents=True)
        (place / "part").write_text("rows")
        then = time.time() - silent_s
        os.utime(place, (then, then))

    @property
    def left(self) -> set[str]:
        return {p.name for p in self.settings.jobs.iterdir()}


@pytest.fixture
def home(engine: Engine, sessions: Sessions, tmp_path: Path) -> Home:
    return Home(engine, sessions, tmp_path)


def test_jobs_whose_time_is_over_go_with_their_files(home: Home) -> None:
    ended = [home.job(state) for state in (jobs.FAILED, jobs.CANCELLED, jobs.QUEUED)]
    over = [home.job(state, over=True) for state in (jobs.FAILED, jobs.CANCELLED)]
    home.maintenance.step()
    assert home.left == set(map(str, ended))
    with db.reading(home.sessions) as session:
        assert sorted(j.id for j in jobs.search(session).items) == ended
    assert not set(over) & set(ended)


def test_a_folder_is_left_behind_for_an_hour_and_not_for_ever(home: Home) -> None:
    """A worker may die between the end of a job and the removal of its parts."""
    just_done, done = home.job(jobs.DONE), home.job(jobs.DONE, silent_s=ORPHAN_S + 60)
    home.folder(990, 0.0)
    home.folder(991, ORPHAN_S + 60)
    (home.settings.jobs / "notes").mkdir()
    home.maintenance.step()
    assert home.left == {str(just_done), "990", "notes"}
    assert str(done) not in home.left


@pytest.mark.parametrize("state", [jobs.QUEUED, jobs.FAILED, jobs.CANCELLED])
def test_the_parts_of_a_job_that_may_go_on_stay_however_old_they_are(home: Home, state: str) -> None:
    job_id = home.job(state, silent_s=30 * 86400)
    home.maintenance.step()
    assert home.left == {str(job_id)}


def test_half_an_output_of_a_killed_worker_goes_after_an_hour(home: Home) -> None:
    incoming = Store(home.settings.blobs).incoming
    for name, silent_s in (("old", ORPHAN_S + 60), ("new", 60.0)):
        (incoming / name).write_text("rows")
        then = time.time() - silent_s
        os.utime(incoming / name, (then, then))
    home.maintenance.step()
    assert [p.name for p in incoming.iterdir()] == ["new"]


def test_there_may_be_no_folder_at_all(home: Home) -> None:
    home.maintenance.step()


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_log_of_sqlite_stays_short(home: Home) -> None:
    for _ in range(20):
        home.job(jobs.QUEUED)
    home.maintenance.step()
    alone = home.settings.home / "alone.db"  # without its log
    shutil.copy(home.settings.home / "registry.db", alone)
    with contextlib.closing(sqlite3.connect(alone)) as database:
        assert database.execute("SELECT count(*) FROM jobs").fetchone() == (20,)
