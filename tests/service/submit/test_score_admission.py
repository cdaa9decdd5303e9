"""Acceptance of scoring jobs: what was checked before is checked again under the locks of the transaction."""

from __future__ import annotations

import os
from typing import Any

import pytest
from sqlalchemy import Engine

from registry import db, garbage, versions
from registry.artifacts import Store
from registry.db import Sessions
from registry.errors import InUse, Invalid, NotFound, NotReady
from registry.jobs.jobs import DEFAULT_KEEP_S
from registry.jobs.tables import JobRow
from registry.tables import VersionRow
from service.config import Settings
from service.submit import admission
from service.submit.score_admission import ScoreAdmission
from tests.registry.helpers import promote, publish_ready
from tests.registry.interleaving import blobs_are_held, just_before, on_postgresql, run_behind

ADMISSION = ScoreAdmission()


def _spec(**fields: Any) -> dict[str, Any]:
    defaults = {"kind": "score", "model": "fraud", "version": 1, "input": {"uri": "/data/rows.csv"}}
    return {**defaults, "engine": "local", "max_attempts": 3, "expires_in": None, **fields}


def _resolve(sessions: Sessions, spec: dict[str, Any]) -> VersionRow:
    with db.reading(sessions) as session:
        return ADMISSION.resolve_version(session, spec)


def _archive(sessions: Sessions) -> None:
    with sessions.begin() as session:
        versions.edit(session, "fraud", 1, archived=True)


def _remove(sessions: Sessions) -> None:
    with sessions.begin() as session:
        versions.remove(session, "fraud", 1)


@pytest.mark.parametrize(("change", "error"), [(_archive, NotReady), (_remove, NotFound)])
def test_a_version_that_was_archived_or_deleted_after_the_check_is_not_accepted(
    sessions: Sessions, store: Store, change: Any, error: type[Exception]
) -> None:
    publish_ready(sessions, store, count=2)
    version = _resolve(sessions, _spec())
    change(sessions)
    with pytest.raises(error), sessions.begin() as session:
        ADMISSION.accept(session, store, _spec(), version, by="ann")


@on_postgresql
@pytest.mark.parametrize(("change", "error"), [(_archive, NotReady), (_remove, NotFound)])
def test_a_version_that_is_archived_or_deleted_before_the_lock_is_not_accepted(
    engine: Engine, sessions: Sessions, store: Store, change: Any, error: type[Exception]
) -> None:
    """A schedule resolves its version in the transaction that accepts the job."""
    publish_ready(sessions, store, count=2)
    with sessions() as session:
        version = ADMISSION.resolve_version(session, _spec())
        with just_before(engine, "FOR UPDATE", lambda: change(sessions)), pytest.raises(error):
            ADMISSION.accept(session, store, _spec(), version, by="ann")


@on_postgresql
def test_a_version_cannot_be_archived_while_a_job_with_it_is_accepted(
    sessions: Sessions, store: Store
) -> None:
    """Then the job was accepted before the version was archived, and not at a time when it was archived."""
    publish_ready(sessions, store)
    version = _resolve(sessions, _spec())
    outcome = run_behind(
        sessions,
        lambda session: ADMISSION.accept(session, store, _spec(), version, by="ann"),
        lambda session: versions.edit(session, "fraud", 1, archived=True).state,
    )
    assert outcome == "archived"


@on_postgresql
def test_a_version_cannot_be_deleted_while_a_job_with_it_is_accepted(
    sessions: Sessions, store: Store
) -> None:
    publish_ready(sessions, store)
    version = _resolve(sessions, _spec())
    outcome = run_behind(
        sessions,
        lambda session: ADMISSION.accept(session, store, _spec(), version, by="ann"),
        lambda session: versions.remove(session, "fraud", 1),
    )
    assert isinstance(outcome, InUse)


def test_only_ready_versions_are_resolved_by_number_or_by_alias(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    promote(sessions, 1)
    promote(sessions, 2, alias="challenger")
    specs = [_spec(), _spec(version=None), _spec(version=None, alias="challenger")]
    assert [_resolve(sessions, spec).number for spec in specs] == [1, 1, 2]
    with sessions.begin() as session:
        session.get_one(VersionRow, _resolve(sessions, _spec()).id).state = "archived"
    for spec in specs[:2]:
        with pytest.raises(NotReady, match="fraud:1 is archived; only a ready version can score"):
            _resolve(sessions, spec)


def _upload_long_ago(store: Store) -> str:
    sha256 = store.put([b"x0\n1\n"]).sha256
    os.utime(store.path(sha256), (1, 1))
    return sha256


def _collect(sessions: Sessions, store: Store) -> list[str]:
    with sessions.begin() as session:
        return garbage.collect(session, store).blobs


@on_postgresql
def test_an_input_that_was_collected_before_the_lock_is_not_accepted(
    engine: Engine, sessions: Sessions, store: Store
) -> None:
    publish_ready(sessions, store)
    spec = _spec(input={"artifact": _upload_long_ago(store), "media_type": "text/csv"})
    version = _resolve(sessions, spec)
    with (
        just_before(engine, "pg_advisory_xact_lock_shared", lambda: _collect(sessions, store)),
        pytest.raises(Invalid, match="was not uploaded"),
        sessions.begin() as session,
    ):
        ADMISSION.accept(session, store, spec, version, by="ann")


@on_postgresql
def test_an_input_is_not_collected_while_its_job_or_schedule_is_accepted(
    sessions: Sessions, store: Store, settings: Settings
) -> None:
    publish_ready(sessions, store)
    spec = _spec(input={"artifact": _upload_long_ago(store), "media_type": "text/csv"})
    version = _resolve(sessions, spec)
    with sessions.begin() as session:
        ADMISSION.accept(session, store, spec, version, by="ann")
        assert blobs_are_held(sessions)
    with sessions.begin() as session:
        ADMISSION.check(session, settings, store, spec)
        assert blobs_are_held(sessions)
    assert not blobs_are_held(sessions)


@on_postgresql
def test_a_schedule_whose_input_was_collected_before_the_lock_is_rejected(
    engine: Engine, sessions: Sessions, store: Store, settings: Settings
) -> None:
    publish_ready(sessions, store)
    spec = _spec(input={"artifact": _upload_long_ago(store), "media_type": "text/csv"})
    with (
        just_before(engine, "pg_advisory_xact_lock_shared", lambda: _collect(sessions, store)),
        pytest.raises(Invalid, match="was not uploaded"),
        sessions.begin() as session,
    ):
        ADMISSION.check(session, settings, store, spec)


def test_accepting_a_job_resets_the_age_of_its_input(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store)
    spec = _spec(input={"artifact": _upload_long_ago(store), "media_type": "text/csv"})
    version = _resolve(sessions, spec)
    with sessions() as session:
        ADMISSION.accept(session, store, spec, version, by="ann")
        session.rollback()
    assert _collect(sessions, store) == []


def test_a_job_has_the_settings_of_its_spec(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store)
    version = _resolve(sessions, _spec())
    with sessions.begin() as session:
        jobs = [
            ADMISSION.accept(session, store, _spec(), version, by="ann"),
            ADMISSION.accept(
                session,
                store,
                _spec(max_attempts=7, expires_in=60.0),
                version,
                by="bob",
                schedule="weekly",
                parent_id=1,
            ),
        ]
    assert [_settings(job) for job in jobs] == [
        (3, DEFAULT_KEEP_S, None, None, "ann"),
        (7, 60.0, "weekly", 1, "bob"),
    ]
    assert {(job.kind, job.engine, job.model, job.version) for job in jobs} == {
        ("score", "local", "fraud", 1)
    }


def _settings(job: JobRow) -> tuple[object, ...]:
    return job.max_attempts, job.keep_s, job.schedule, job.parent_id, job.created_by


def test_ray_must_be_installed_for_a_job_that_requires_it(
    sessions: Sessions, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "ray_is_installed", lambda: False)
    publish_ready(sessions, store)
    version = _resolve(sessions, _spec())
    with pytest.raises(Invalid, match="Ray is not installed"), sessions.begin() as session:
        ADMISSION.accept(session, store, _spec(engine="ray"), version, by="ann")
