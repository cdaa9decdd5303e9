"""Schedules at work: check a schedule's job when it is made, start it when it is due.

A job that a schedule starts is not checked against its first rows: its planning does that, and is tried
again when the input is not there yet. Nothing here knows HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from registry import db, due, jobs, versions
from registry.artifacts import Store
from registry.batch_tables import JobRow, ScheduleRow
from registry.errors import Missing, TriviumError, Unavailable
from registry.schedules import FAILED, Start
from service import telemetry
from service.batch import accept, places, train_accept
from service.batch.accept import Spec
from service.config import Settings

LOOK_S = 0.5

log = telemetry.logger(__name__)


def check(session: Session, settings: Settings, store: Store, spec: Spec) -> None:
    """Could a schedule start this job now, or the `then` of a training? Its input need not be there yet, if
    it has a place to be.

    Raises `NotFound`, `NotReady`, `Invalid`.
    """
    if "model" in spec:
        version = accept.version_of(session, spec)
        accept.layout(spec, versions.signature_of(version))
    versions.hold_blobs(session, shared=True)
    for name in ("estimator", "input"):
        given = spec.get(name, {})
        if given.get("artifact") is not None:
            versions.require_blob(store, given["artifact"], f"{name}.artifact")
        elif given.get("uri") is not None:
            places.inside(settings.roots, given["uri"])


def look(settings: Settings, sessions: db.Sessions, store: Store, spec: Spec) -> list[str]:
    """Look at the input as `POST /v1/jobs` does, and say what keeps it from being looked at: it may not be
    there yet. Reads files, which is nothing for a transaction.

    Raises `NotFound`, `NotReady`, `Invalid`.
    """
    said: list[str] = []
    if spec["kind"] == jobs.TRAIN:
        features: list[str] = []
        with _noted(said):
            features = train_accept.examine(settings, store, spec)
        with _noted(said):
            train_accept.examine_then(settings, store, spec, features)
        return said
    with _noted(said):
        with db.reading(sessions) as session:
            version = accept.version_of(session, spec)
        accept.examine(settings, store, spec, version)
    return said


@contextmanager
def _noted(said: list[str]) -> Iterator[None]:
    """Input that is not there, or cannot be had now, is a warning."""
    try:
        yield
    except (Missing, Unavailable) as error:
        said.append(f"{error}; each run looks again")


def starter(store: Store) -> Start:
    """Makes a job of a schedule. A scoring takes the version that its alias points to now."""

    def start(session: Session, schedule: ScheduleRow) -> JobRow:
        spec, by = schedule.job, schedule.created_by
        if spec["kind"] == jobs.TRAIN:
            return train_accept.accept(session, store, spec, by=by, schedule=schedule.name)
        version = accept.version_of(session, spec)
        return accept.accept(session, store, spec, version, by=by, schedule=schedule.name)

    return start


def step(sessions: db.Sessions, start: Start) -> int:
    """Do what is due now; how many runs were started, skipped or failed."""
    with db.reading(sessions) as session:  # a look costs the writers nothing
        if not due.is_due(session):
            return 0
    done = 0
    while True:
        with sessions.begin() as session:
            made = due.tick(session, _told(start))
        if made is None:
            return done
        done += len(made)
        for run in made:
            tell = log.warning if run.outcome == FAILED else log.info
            tell(f"schedule.{run.outcome}", schedule=run.schedule, job=run.job_id, reason=run.reason)


def _told(start: Start) -> Start:
    """An error that nobody has foreseen is one run's failure, and must not stop all schedules."""

    def told(session: Session, schedule: ScheduleRow) -> JobRow:
        try:
            return start(session, schedule)
        except (TriviumError, SQLAlchemyError):
            raise
        except Exception as error:
            log.exception("schedule.broken", schedule=schedule.name)
            raise TriviumError(f"{type(error).__name__}: {error}") from error

    return told
