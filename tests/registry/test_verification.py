"""Checks after an upgrade: which versions are measured again, and what a result changes."""

from __future__ import annotations

import msgspec
import pytest

from registry import aliases, db, exports, queue, verification, versions
from registry.artifacts import Store
from registry.build_messages import BuildResult
from registry.db import Sessions
from registry.errors import Conflict, NotFound, NotReady
from registry.exports import FinishedExport, NewExport
from registry.tables import VersionRow
from registry.verification import CheckedExport, CheckResult
from registry.vocabulary import AGREED, DIFFERS, VERIFY_TASK
from tests.registry.helpers import READY, build, promote, publish, publish_ready
from tests.registry.jobs.schedule_helpers import add_schedule

OLD, NEW = {"onnxruntime": "1.26.0"}, {"onnxruntime": "1.32.0"}
MEASURED = msgspec.structs.replace(READY, measured="ab" * 32, libraries=OLD)
DIFFERENT = CheckResult(DIFFERS, NEW, {"onnx": {"label_mismatches": 3}}, "isolated", "onnx: 3 labels differ")


def publish_measured(
    sessions: Sessions, store: Store, count: int = 1, result: BuildResult = MEASURED
) -> None:
    for _ in range(count):
        publish(sessions, store)
    build(sessions, result)


def outdated(sessions: Sessions) -> list[int]:
    """Numbers of the versions that an upgrade to `NEW` measures again."""
    with db.reading(sessions) as session:
        ids = verification.outdated(session, lambda recorded: recorded != NEW)
        return [versions.get_by_id(session, i).number for i in ids]


def request(sessions: Sessions, number: int = 1, accept_by: str | None = None) -> int:
    with sessions.begin() as session:
        version_id = versions.get(session, "fraud", number).id
        verification.request(session, version_id, accept_by=accept_by)
        return version_id


def finish(sessions: Sessions, version_id: int, result: CheckResult) -> None:
    with sessions.begin() as session:
        task = queue.claim(session, [VERIFY_TASK], "builder")
        assert task is not None
        queue.finish(session, task.id, task.fence)
        verification.finish(session, version_id, result)


def read(sessions: Sessions, number: int = 1) -> VersionRow:
    with db.reading(sessions) as session:
        return versions.get(session, "fraud", number)


def test_a_built_version_agrees_with_the_libraries_of_its_build(sessions: Sessions, store: Store) -> None:
    publish_measured(sessions, store)
    row = read(sessions)
    assert row.verification is not None
    assert (row.verification["state"], row.verification["libraries"], row.fallback) == (AGREED, OLD, None)


def test_versions_of_aliases_and_their_rollbacks_are_measured_again(sessions: Sessions, store: Store) -> None:
    publish_measured(sessions, store, count=4)
    assert outdated(sessions) == []  # nothing uses them
    promote(sessions, 1, 2, 3)
    assert outdated(sessions) == [2, 3]
    with sessions.begin() as session:
        aliases.promote(session, "fraud", "champion", 4, by="ann", edge_percent=50)
    assert outdated(sessions) == [3, 4]


def test_versions_of_schedules_and_exports_are_measured_again(sessions: Sessions, store: Store) -> None:
    publish_measured(sessions, store, count=3)
    add_schedule(sessions, job={"kind": "score", "model": "fraud", "version": 2})
    with sessions.begin() as session:
        export = exports.create(session, store, "fraud", 3, NewExport(), by="ann")
        exports.finish(session, export.id, FinishedExport("ready", {}, "cd" * 32, 1, libraries="{}"))
    assert outdated(sessions) == [2, 3]


def test_versions_measured_with_the_installed_libraries_are_not_measured_again(
    sessions: Sessions, store: Store
) -> None:
    publish_measured(sessions, store, result=msgspec.structs.replace(MEASURED, libraries=NEW))
    publish_ready(sessions, store)  # without measured rows
    promote(sessions, 1, 2)
    assert outdated(sessions) == []


def test_a_request_is_one_task_and_keeps_the_fallback(sessions: Sessions, store: Store) -> None:
    publish_measured(sessions, store)
    version_id = request(sessions)
    request(sessions)
    finish(sessions, version_id, DIFFERENT)
    request(sessions)
    row = read(sessions)
    assert row.verification is not None
    assert (row.verification["state"], row.fallback) == ("pending", "isolated")
    with db.reading(sessions) as session:
        assert queue.depth(session, [VERIFY_TASK]) == 1
        assert [v.number for v in verification.differing(session)] == [1]


def test_a_difference_is_recorded_until_a_later_check_agrees(sessions: Sessions, store: Store) -> None:
    publish_measured(sessions, store)
    promote(sessions, 1)
    version_id = request(sessions)
    finish(sessions, version_id, DIFFERENT)
    row = read(sessions)
    assert row.verification is not None
    assert (row.fallback, row.verification["reason"]) == ("isolated", "onnx: 3 labels differ")
    assert outdated(sessions) == []  # the next start does not measure it again
    request(sessions)
    finish(sessions, version_id, CheckResult(AGREED, NEW, {}))
    assert read(sessions).fallback is None
    with db.reading(sessions) as session:
        assert verification.differing(session) == []


def test_an_acceptance_replaces_the_queued_check_and_names_its_caller(
    sessions: Sessions, store: Store
) -> None:
    publish_measured(sessions, store)
    request(sessions)
    version_id = request(sessions, accept_by="bob")
    with db.reading(sessions) as session:
        assert verification.inputs(session, version_id).accepts
        assert queue.depth(session, [VERIFY_TASK]) == 1
    finish(sessions, version_id, CheckResult(AGREED, NEW, {}, measured="ef" * 32))
    row = read(sessions)
    assert row.verification is not None
    assert (row.measured, row.verification["accepted"]["by"]) == ("ef" * 32, "bob")
    request(sessions)
    with db.reading(sessions) as session:
        assert not verification.inputs(session, version_id).accepts


def test_an_export_that_differs_is_rejected(sessions: Sessions, store: Store) -> None:
    publish_measured(sessions, store)
    with sessions.begin() as session:
        ready = FinishedExport("ready", {"rows": 3}, "cd" * 32, 1, measured="ef" * 32, libraries="{}")
        export_ids = [exports.create(session, store, "fraud", 1, NewExport(), by="ann").id for _ in range(2)]
        for export_id in export_ids:
            exports.finish(session, export_id, ready)
    version_id = request(sessions)
    checked = {i: CheckedExport(NEW, reason) for i, reason in zip(export_ids, (None, "drifts"), strict=True)}
    finish(sessions, version_id, CheckResult(DIFFERS, NEW, {}, exports=checked))
    with db.reading(sessions) as session:
        rows = [exports.get(session, "fraud", 1, i) for i in export_ids]
        assert [(r.state, (r.report or {}).get("reason")) for r in rows] == [
            ("ready", None),
            ("rejected", "drifts"),
        ]
        assert [e.id for e in verification.withdrawn_exports(session)] == export_ids[1:]


def test_a_check_that_never_ends_counts_as_a_difference(sessions: Sessions, store: Store) -> None:
    publish_measured(sessions, store)
    version_id = request(sessions)
    with sessions.begin() as session:
        assert verification.reject(session, version_id, "3 attempts").fallback == "isolated"


def test_only_ready_versions_with_measured_rows_are_verified(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store)
    with pytest.raises(Conflict, match="no measured rows"):
        request(sessions)
    publish_measured(sessions, store)
    version_id = request(sessions, 2)
    with sessions.begin() as session:
        versions.edit(session, "fraud", 2, archived=True)
    with pytest.raises(NotReady):
        request(sessions, 2)
    with pytest.raises(NotFound), db.reading(sessions) as session:
        verification.inputs(session, version_id)
