"""Admission of a schedule's job: checked when the schedule is made, started when it is due.

A job that a schedule starts is not checked against its first rows: its planning does that, and is tried
again when the input is not there yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session

from registry import db, versions
from registry.artifacts import Store
from registry.errors import Missing, Unavailable
from registry.jobs.schedules import Start
from registry.jobs.tables import JobRow, ScheduleRow
from registry.vocabulary import TRAIN
from service.config import Settings
from service.submit import input_locations, score_admission, train_admission
from service.submit.score_admission import Spec


def check(session: Session, settings: Settings, store: Store, spec: Spec) -> None:
    """Could a schedule start this job now, or the `then` of a training? Its input need not be there yet, if
    it has a place to be.

    Raises `NotFound`, `NotReady`, `Invalid`.
    """
    if "model" in spec:
        version = score_admission.version_of(session, spec)
        score_admission.layout(spec, versions.signature_of(version))
    versions.hold_blobs(session, shared=True)
    for name in ("estimator", "input"):
        given = spec.get(name, {})
        if given.get("artifact") is not None:
            versions.require_blob(store, given["artifact"], f"{name}.artifact")
        elif given.get("uri") is not None:
            input_locations.resolve_in_roots(settings.roots, given["uri"])


def look(settings: Settings, sessions: db.Sessions, store: Store, spec: Spec) -> list[str]:
    """Look at the input as `POST /v1/jobs` does, and say what keeps it from being looked at: it may not be
    there yet. Reads files, which is nothing for a transaction.

    Raises `NotFound`, `NotReady`, `Invalid`.
    """
    said: list[str] = []
    if spec["kind"] == TRAIN:
        features: list[str] = []
        with _noted(said):
            features = train_admission.examine(settings, store, spec)
        with _noted(said):
            train_admission.examine_then(settings, store, spec, features)
        return said
    with _noted(said):
        with db.reading(sessions) as session:
            version = score_admission.version_of(session, spec)
        score_admission.examine(settings, store, spec, version)
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
        if spec["kind"] == TRAIN:
            return train_admission.accept(session, store, spec, by=by, schedule=schedule.name)
        version = score_admission.version_of(session, spec)
        return score_admission.accept(session, store, spec, version, by=by, schedule=schedule.name)

    return start
