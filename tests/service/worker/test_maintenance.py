"""Maintenance deletes expired jobs and orphaned files only."""

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
from sqlalchemy.orm import Session

from registry import db
from registry.artifacts import Store
from registry.db import Sessions
from registry.jobs import jobs
from registry.jobs.jobs import NewJob
from registry.jobs.tables import JobRow
from registry.tables import now
from registry.vocabulary import SCORE
from service.config import Settings
from service.worker import maintenance
from service.worker.maintenance import ORPHAN_S, Maintenance
from tests.harness.durability import Event, recorded


class DataDirectory:
    def __init__(self, engine: Engine, sessions: Sessions, home: Path) -> None:
        self.sessions, self.settings = sessions, Settings(home=home)
        self.maintenance = Maintenance(self.settings, engine, sessions, Store(home / "blobs"))

    def job(self, state: str, *, expired: bool = False, age_s: float = 0.0) -> int:
        """Create a job with a directory that was last written `age_s` seconds ago."""
        with self.sessions.begin() as session:
            job = jobs.create(session, NewJob(kind=SCORE, spec={}, model="m"), by="ann")
            if state != jobs.QUEUED:
                jobs.end(session, job, state)
            job_id = job.id
        if expired:
            with self.sessions.begin() as session:
                past = now() - timedelta(seconds=1)
                session.execute(update(JobRow).where(JobRow.id == job_id).values(expires_at=past))
        self.job_directory(job_id, age_s)
        return job_id

    def job_directory(self, job_id: int, age_s: float) -> None:
        directory = self.settings.job_directory(job_id)
        directory.mkdir(parents=True)
        (directory / "part").write_text("rows")
        modified = time.time() - age_s
        os.utime(directory, (modified, modified))

    @property
    def directories(self) -> set[str]:
        return {p.name for p in self.settings.jobs_directory.iterdir()}


@pytest.fixture
def home(engine: Engine, sessions: Sessions, tmp_path: Path) -> DataDirectory:
    return DataDirectory(engine, sessions, tmp_path)


def test_expired_jobs_are_deleted_with_their_files(home: DataDirectory) -> None:
    ended = [home.job(state) for state in (jobs.FAILED, jobs.CANCELLED, jobs.QUEUED)]
    expired = [home.job(state, expired=True) for state in (jobs.FAILED, jobs.CANCELLED)]
    home.maintenance.step()
    assert home.directories == set(map(str, ended))
    with db.reading(home.sessions) as session:
        assert sorted(j.id for j in jobs.search(session).items) == ended
    assert not set(expired) & set(ended)


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_files_of_an_expired_job_are_deleted_after_its_row(home: DataDirectory) -> None:
    """In the other order, a job could remain whose files are gone."""
    part = home.settings.job_directory(home.job(jobs.FAILED, expired=True)) / "part"
    with recorded() as log:
        home.maintenance.step()
    assert log.committed("jobs") < log.position("unlink", part)


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_files_of_an_expired_job_stay_if_its_row_cannot_be_deleted(home: DataDirectory) -> None:
    job_id = home.job(jobs.FAILED, expired=True)

    def break_disk(event: Event) -> None:
        if event.kind == "commit":
            raise OSError(28, "No space left on device")

    with recorded(break_disk), pytest.raises(OSError, match="No space"):
        home.maintenance.step()
    assert home.directories == {str(job_id)}


def test_an_orphaned_directory_is_deleted_after_an_hour(home: DataDirectory) -> None:
    """A worker may die after a job has ended and before it deletes the job's directory."""
    new_job, old_job = home.job(jobs.DONE), home.job(jobs.DONE, age_s=ORPHAN_S + 60)
    home.job_directory(990, 0.0)
    home.job_directory(991, ORPHAN_S + 60)
    (home.settings.jobs_directory / "notes").mkdir()
    home.maintenance.step()
    assert home.directories == {str(new_job), "990", "notes"}
    assert str(old_job) not in home.directories


@pytest.mark.parametrize("state", [jobs.QUEUED, jobs.FAILED, jobs.CANCELLED])
def test_directories_of_unfinished_jobs_are_kept_at_any_age(home: DataDirectory, state: str) -> None:
    job_id = home.job(state, age_s=30 * 86400)
    home.maintenance.step()
    assert home.directories == {str(job_id)}


def test_an_incomplete_output_of_a_killed_worker_is_deleted_after_an_hour(home: DataDirectory) -> None:
    incoming = Store(home.settings.blobs).incoming
    for name, age_s in (("old", ORPHAN_S + 60), ("new", 60.0)):
        (incoming / name).write_text("rows")
        modified = time.time() - age_s
        os.utime(incoming / name, (modified, modified))
    home.maintenance.step()
    assert [p.name for p in incoming.iterdir()] == ["new"]


def test_maintenance_works_without_any_directory(home: DataDirectory) -> None:
    home.maintenance.step()


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_wal_file_of_sqlite_is_checkpointed(home: DataDirectory) -> None:
    for _ in range(20):
        home.job(jobs.QUEUED)
    home.maintenance.step()
    alone = home.settings.home / "alone.db"  # without its WAL file
    shutil.copy(home.settings.home / "registry.db", alone)
    with contextlib.closing(sqlite3.connect(alone)) as database:
        assert database.execute("SELECT count(*) FROM jobs").fetchone() == (20,)


def test_a_job_that_is_resumed_before_the_deletion_keeps_its_files(
    home: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = home.job(jobs.FAILED, expired=True)
    any_expired = jobs.any_expired

    def resume_after(session: Session) -> bool:
        found = any_expired(session)
        with home.sessions.begin() as other:
            jobs.resume(other, job_id)
        return found

    monkeypatch.setattr(jobs, "any_expired", resume_after)
    home.maintenance.step()
    assert home.directories == {str(job_id)}
    with db.reading(home.sessions) as session:
        assert jobs.get(session, job_id).state == jobs.QUEUED


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_directory_that_disappears_while_they_are_listed_is_no_error(
    home: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = home.settings.job_directory(990)
    home.job_directory(990, ORPHAN_S + 60)
    home.job_directory(991, ORPHAN_S + 60)
    is_old = maintenance._is_old

    def delete_first(checked: Path) -> bool:
        if checked == directory:
            shutil.rmtree(directory)
        return is_old(checked)

    monkeypatch.setattr(maintenance, "_is_old", delete_first)
    home.maintenance.step()
    assert home.directories == set()
