"""Garbage collection deletes unreferenced blobs after the grace period."""

from __future__ import annotations

import os
import time

import msgspec
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from registry import db, exports, garbage, versions
from registry.artifacts import Store
from registry.build_messages import BuildResult
from registry.db import Sessions
from registry.errors import Invalid
from registry.jobs import jobs, schedules
from tests.registry.helpers import SIGNATURE, build, publish, publish_ready, threads
from tests.registry.interleaving import blobs_are_held, just_before, never_wait, on_postgresql, run_behind
from tests.registry.jobs.schedule_helpers import add_schedule

DAY = 24 * 3600.0


def _put_old(store: Store, content: bytes, days: float = 2) -> str:
    sha256 = store.put([content]).sha256
    _age(store, sha256, days)
    return sha256


def _age(store: Store, sha256: str, days: float = 2) -> None:
    moment = time.time() - days * DAY
    os.utime(store.path(sha256), (moment, moment))


def _collect(sessions: Sessions, store: Store, **options: object) -> garbage.GarbageReport:
    with sessions.begin() as session:
        return garbage.collect(session, store, **options)  # type: ignore[arg-type]


def test_orphans_are_deleted_after_a_day_and_blobs_of_versions_stay(sessions: Sessions, store: Store) -> None:
    contents = (b"example", b"answers", b"graph", b"table", b"rows")
    example, answers, servable, table, measured = (_put_old(store, content) for content in contents)
    publish(
        sessions,
        store,
        content=b"model",
        example={"artifact": example, "media_type": "text/csv"},
        answers={"artifact": answers, "media_type": "text/csv"},
    )
    ready = BuildResult(state="ready", report={}, signature=SIGNATURE, runtime="onnx")
    build(sessions, msgspec.structs.replace(ready, servable=servable, forest=table, measured=measured))
    for blob in store:
        _age(store, blob.sha256)
    orphan, new_blob = _put_old(store, b"orphan"), _put_old(store, b"new", 0.9)
    assert _collect(sessions, store, dry_run=True).blobs == [orphan]
    assert store.path(orphan).is_file()
    report = _collect(sessions, store)
    assert (report.blobs, report.bytes, report.kept) == ([orphan], 6, 7)
    model = store.put([b"model"]).sha256
    kept = {example, answers, servable, table, measured, new_blob, model}
    assert {b.sha256 for b in store} == kept
    assert _collect(sessions, store).blobs == []


def test_blobs_of_deleted_versions_are_collected(sessions: Sessions, store: Store) -> None:
    publish(sessions, store, content=b"one")
    publish(sessions, store, content=b"one")
    sha256 = store.put([b"one"]).sha256
    for number, orphans in ((1, []), (2, [sha256])):
        with sessions.begin() as session:
            versions.remove(session, "fraud", number)
        _age(store, sha256)
        assert _collect(sessions, store).blobs == orphans


def test_blobs_of_jobs_and_schedules_stay_until_these_are_deleted(sessions: Sessions, store: Store) -> None:
    names = ("input", "output", "errors", "estimator", "training", "next", "then")
    blobs = {name: _put_old(store, name.encode()) for name in names}
    score = {"kind": "score", "model": "fraud", "input": {"artifact": blobs["input"]}}
    train = {
        "kind": "train",
        "estimator": {"artifact": blobs["estimator"]},
        "input": {"artifact": blobs["training"]},
        "then": {"kind": "score", "input": {"artifact": blobs["then"]}},
    }
    with sessions.begin() as session:
        job = jobs.create(session, jobs.NewJob(kind="score", spec=score, model="fraud"), by="ann")
        job.output, job.errors = blobs["output"], blobs["errors"]
        jobs.end(session, job, jobs.DONE)
        jobs.create(session, jobs.NewJob(kind="train", spec={**train, "then": None}, model="fraud"), by="ann")
    add_schedule(sessions, "train", job=train)
    add_schedule(sessions, "score", job={**score, "input": {"artifact": blobs["next"]}})
    assert _collect(sessions, store).blobs == []
    with sessions.begin() as session:
        schedules.remove(session, "train")
    assert _collect(sessions, store).blobs == [blobs["then"]]
    with sessions.begin() as session:
        job = jobs.get(session, job.id)
        job.expires_at = job.created_at
    with sessions.begin() as session:
        assert jobs.delete_expired(session) == [job.id]
    assert set(_collect(sessions, store).blobs) == {blobs[n] for n in ("input", "output", "errors")}


def test_artifacts_in_any_field_of_a_job_stay(sessions: Sessions, store: Store) -> None:
    top, nested = _put_old(store, b"top"), _put_old(store, b"nested")
    spec = {"kind": "other", "baseline": {"artifact": top}, "steps": [{"do": {"rows": {"artifact": nested}}}]}
    add_schedule(sessions, "other", job=spec)
    assert _collect(sessions, store).blobs == []
    with sessions.begin() as session:
        schedules.remove(session, "other")
    assert set(_collect(sessions, store).blobs) == {top, nested}


def test_interrupted_uploads_are_deleted_after_the_grace_period(sessions: Sessions, store: Store) -> None:
    partial = store.incoming / "partial"
    partial.write_bytes(b"half")
    assert _collect(sessions, store).interrupted_uploads == 0
    os.utime(partial, (1, 1))
    assert _collect(sessions, store, dry_run=True).interrupted_uploads == 0
    assert partial.exists()
    assert _collect(sessions, store).interrupted_uploads == 1
    assert not partial.exists()


def test_publishing_resets_the_age_of_an_upload(sessions: Sessions, store: Store) -> None:
    sha256 = _put_old(store, b"model")
    with sessions() as session:
        new = versions.NewVersion(model="fraud", artifact=sha256, format="onnx")
        versions.publish(session, store, new, by="ann")
        session.rollback()
    assert _collect(sessions, store).blobs == []


def test_a_concurrent_collection_never_deletes_the_blob_of_a_published_version(
    sessions: Sessions, store: Store
) -> None:
    """Every blob is old enough: either it is deleted and the publish is rejected, or it stays."""
    blobs = [_put_old(store, f"blob {i}".encode()) for i in range(40)]
    published: list[str] = []

    def publish_all() -> None:
        for sha256 in blobs:
            try:
                with sessions.begin() as session:
                    new = versions.NewVersion(model="fraud", artifact=sha256, format="onnx")
                    versions.publish(session, store, new, by="ann")
            except Invalid:  # collected
                continue
            published.append(sha256)

    def collect() -> list[str]:
        return [sha256 for _ in range(10) for sha256 in _collect(sessions, store).blobs]

    _, deleted = threads(publish_all, collect)
    assert sorted([*published, *deleted]) == sorted(blobs)  # type: ignore[misc]
    with db.reading(sessions) as session:
        for version in versions.search(session, "fraud").items if published else ():
            assert store.path(version.artifact).is_file()


@pytest.mark.parametrize("dry_run", [True, False])
def test_an_empty_store_has_no_garbage(sessions: Sessions, store: Store, dry_run: bool) -> None:
    assert _collect(sessions, store, dry_run=dry_run) == garbage.GarbageReport([], 0, 0, 0, dry_run)


def test_the_files_and_calibration_rows_of_exports_stay(sessions: Sessions, store: Store) -> None:
    names = ("calibration", "file", "compressed", "rows")
    blobs = {name: _put_old(store, name.encode()) for name in names}
    publish_ready(sessions, store)
    new = exports.NewExport("int8", {"artifact": blobs["calibration"], "media_type": "text/csv"})
    with sessions.begin() as session:
        export_id = exports.create(session, store, "fraud", 1, new, by="ann").id
    _age(store, blobs["calibration"])
    assert set(_collect(sessions, store).blobs) == {blobs[name] for name in names[1:]}
    blobs = {name: _put_old(store, name.encode()) for name in names}
    ready = exports.FinishedExport(
        "ready", {}, blobs["file"], 4, blobs["compressed"], "1.0", measured=blobs["rows"]
    )
    with sessions.begin() as session:
        exports.finish(session, export_id, ready)
    assert _collect(sessions, store).blobs == []
    with sessions.begin() as session:
        versions.remove(session, "fraud", 1)
    assert set(_collect(sessions, store).blobs) == set(blobs.values())


def test_only_blobs_older_than_the_grace_period_are_collected(sessions: Sessions, store: Store) -> None:
    sha256 = _put_old(store, b"orphan", days=0.5)
    assert _collect(sessions, store, grace_s=DAY).blobs == []
    assert _collect(sessions, store, grace_s=DAY / 4).blobs == [sha256]


def test_a_blob_that_is_put_again_during_a_collection_stays(
    sessions: Sessions, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, orphan = _put_old(store, b"kept"), _put_old(store, b"orphan")
    referenced_blobs = garbage._referenced_blobs

    def put_again(session: Session) -> set[str | None]:
        store.put([b"kept"])
        return referenced_blobs(session)

    monkeypatch.setattr(garbage, "_referenced_blobs", put_again)
    report = _collect(sessions, store)
    assert (report.blobs, report.bytes, report.kept) == ([orphan], 6, 1)
    assert store.path(kept).read_bytes() == b"kept"


@on_postgresql
@pytest.mark.parametrize("field", ["artifact", "example.artifact"])
def test_a_blob_that_is_collected_before_the_lock_is_not_published(
    engine: Engine, sessions: Sessions, store: Store, field: str
) -> None:
    blobs = {"artifact": _put_old(store, b"model"), "example.artifact": _put_old(store, b"rows")}
    new = versions.NewVersion(
        model="fraud",
        artifact=blobs["artifact"],
        format="onnx",
        example={"artifact": blobs["example.artifact"], "media_type": "text/csv"},
    )

    def collect() -> None:
        store.touch(next(blobs[other] for other in blobs if other != field))
        assert _collect(sessions, store).blobs == [blobs[field]]

    with (
        just_before(engine, "pg_advisory_xact_lock_shared", collect),
        pytest.raises(Invalid) as raised,
        sessions.begin() as session,
    ):
        versions.publish(session, store, new, by="ann")
    assert [error.field for error in raised.value.errors] == [field]


@on_postgresql
def test_calibration_rows_that_are_collected_before_the_lock_are_not_accepted(
    engine: Engine, sessions: Sessions, store: Store
) -> None:
    publish_ready(sessions, store)
    calibration = {"artifact": _put_old(store, b"rows"), "media_type": "text/csv"}
    with (
        just_before(engine, "pg_advisory_xact_lock_shared", lambda: _collect(sessions, store)),
        pytest.raises(Invalid) as raised,
        sessions.begin() as session,
    ):
        exports.create(session, store, "fraud", 1, exports.NewExport("int8", calibration), by="ann")
    assert [error.field for error in raised.value.errors] == ["calibration.artifact"]


@on_postgresql
def test_blobs_are_held_until_their_version_or_export_is_committed(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store)
    sha256 = _put_old(store, b"blob")
    new = versions.NewVersion(model="fraud", artifact=sha256, format="onnx")
    calibration = {"artifact": sha256, "media_type": "text/csv"}
    with sessions.begin() as session:
        versions.publish(session, store, new, by="ann")
        assert blobs_are_held(sessions)
    with sessions.begin() as session:
        exports.create(session, store, "fraud", 1, exports.NewExport("int8", calibration), by="ann")
        assert blobs_are_held(sessions)
    assert not blobs_are_held(sessions)


@on_postgresql
def test_a_collection_waits_for_a_publication_and_keeps_its_blob(sessions: Sessions, store: Store) -> None:
    sha256 = _put_old(store, b"model")
    new = versions.NewVersion(model="fraud", artifact=sha256, format="onnx")

    def publish_old(session: Session) -> None:
        versions.publish(session, store, new, by="ann")
        _age(store, sha256)  # otherwise its age alone would save it

    report = run_behind(sessions, publish_old, lambda session: garbage.collect(session, store))
    assert isinstance(report, garbage.GarbageReport)
    assert report.blobs == []


@on_postgresql
def test_a_publication_waits_for_a_collection_and_misses_its_blob(sessions: Sessions, store: Store) -> None:
    sha256 = _put_old(store, b"model")
    new = versions.NewVersion(model="fraud", artifact=sha256, format="onnx")
    outcome = run_behind(
        sessions,
        lambda session: garbage.collect(session, store),
        lambda session: versions.publish(session, store, new, by="ann"),
    )
    assert isinstance(outcome, Invalid)


@on_postgresql
def test_two_publications_hold_their_blobs_at_the_same_time(sessions: Sessions) -> None:
    with sessions() as first, sessions() as second:
        for session in (first, never_wait(second)):
            versions.lock_blobs(session, shared=True)
