"""Exports: only of ready versions, with the calibration rows that were uploaded."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from registry import aliases, db, exports, queue, revision, versions
from registry.artifacts import Store
from registry.db import Sessions
from registry.errors import Invalid, NotFound, NotReady
from registry.exports import FinishedExport, NewExport
from registry.tables import ExportRow, TaskRow
from registry.vocabulary import EXPORT_TASK
from tests.registry.helpers import promote, publish, publish_ready
from tests.registry.interleaving import on_postgresql, run_behind

PLAIN = NewExport()
READY = FinishedExport("ready", {"rows": 3}, "ab" * 32, 7, "cd" * 32, "1.0")


def _create(sessions: Sessions, store: Store, number: int = 1, new: NewExport = PLAIN) -> int:
    with sessions.begin() as session:
        return exports.create(session, store, "fraud", number, new, by="ann").id


def _finish(sessions: Sessions, export_id: int, finished: FinishedExport = READY) -> None:
    with sessions.begin() as session:
        exports.finish(session, export_id, finished)


def _archive(sessions: Sessions, number: int = 1) -> None:
    with sessions.begin() as session:
        versions.edit(session, "fraud", number, archived=True)


def test_a_new_export_is_building_and_has_one_task(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store)
    export_id = _create(sessions, store)
    with sessions.begin() as session:
        row = exports.get(session, "fraud", 1, export_id)
        assert (row.state, row.quantize, row.calibration, row.created_by) == ("building", "none", None, "ann")
        task = queue.claim(session, [EXPORT_TASK], "builder")
        assert task is not None
        assert (task.subject, task.max_attempts) == (str(export_id), versions.BUILD_ATTEMPTS)
        assert queue.claim(session, [EXPORT_TASK], "builder") is None


def test_only_a_ready_version_can_be_exported(sessions: Sessions, store: Store) -> None:
    publish(sessions, store)
    with pytest.raises(NotReady, match="fraud:1 is building; only a ready version can be exported"):
        _create(sessions, store)
    publish_ready(sessions, store)
    _archive(sessions)
    with pytest.raises(NotReady, match="archived"):
        _create(sessions, store)
    with pytest.raises(NotFound):
        _create(sessions, store, 3)
    _create(sessions, store, 2)
    with db.reading(sessions) as session:
        assert session.scalar(select(func.count()).select_from(ExportRow)) == 1
        assert session.scalar(select(func.count()).where(TaskRow.kind == EXPORT_TASK)) == 1


def test_calibration_rows_must_have_been_uploaded(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store)
    new = NewExport("int8", {"artifact": "0" * 64, "media_type": "text/csv"})
    with pytest.raises(Invalid) as raised:
        _create(sessions, store, new=new)
    assert [error.field for error in raised.value.errors] == ["calibration.artifact"]


@on_postgresql
def test_a_version_that_is_archived_at_the_same_time_is_not_exported(
    sessions: Sessions, store: Store
) -> None:
    publish_ready(sessions, store)
    outcome = run_behind(
        sessions,
        lambda session: versions.edit(session, "fraud", 1, archived=True),
        lambda session: exports.create(session, store, "fraud", 1, NewExport(), by="ann"),
    )
    assert isinstance(outcome, NotReady)


@on_postgresql
def test_a_version_that_is_deleted_at_the_same_time_is_not_exported(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    outcome = run_behind(
        sessions,
        lambda session: versions.remove(session, "fraud", 1),
        lambda session: exports.create(session, store, "fraud", 1, NewExport(), by="ann"),
    )
    assert isinstance(outcome, NotFound)


def test_the_export_of_a_deleted_version_is_not_found(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    export_id = _create(sessions, store)
    with sessions.begin() as session:
        versions.remove(session, "fraud", 1)
    with sessions() as session:
        for call in (
            lambda: exports.inputs(session, export_id),
            lambda: exports.finish(session, export_id, READY),
            lambda: exports.reject(session, export_id, "no"),
        ):
            with pytest.raises(NotFound):
                call()


def test_an_export_is_found_only_with_its_own_version(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    export_id = _create(sessions, store)
    with db.reading(sessions) as session:
        assert exports.get(session, "fraud", 1, export_id).id == export_id
        with pytest.raises(NotFound):
            exports.get(session, "fraud", 2, export_id)
        assert [e.id for e in exports.search(session, "fraud", 1).items] == [export_id]
        assert exports.search(session, "fraud", 2).items == []


def test_a_finished_export_records_its_files_and_a_change_of_the_model(
    sessions: Sessions, store: Store
) -> None:
    publish_ready(sessions, store)
    ready, rejected = _create(sessions, store), _create(sessions, store)
    with db.reading(sessions) as session:
        before = revision.current(session)
    _finish(sessions, ready)
    with sessions.begin() as session:
        exports.reject(session, rejected, "too large")
    with db.reading(sessions) as session:
        row = exports.get(session, "fraud", 1, ready)
        assert (row.state, row.blob, row.bytes, row.zstd, row.min_runtime) == (
            "ready", READY.blob, 7, READY.zstd, "1.0",
        )  # fmt: skip
        assert row.finished_at is not None
        row = exports.get(session, "fraud", 1, rejected)
        assert (row.state, row.report, row.blob) == ("rejected", {"reason": "too large"}, None)
        changes = revision.changes_since(session, before)
        assert changes is not None
        assert (changes.revision, changes.models) == (before + 2, {"fraud"})


def test_devices_get_the_newest_ready_export_of_the_alias(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    promote(sessions, 1)
    ids = [_create(sessions, store, number) for number in (1, 1, 1, 2)]
    finished = [FinishedExport("ready", {}, digit * 64, int(digit), None, "1.0") for digit in "1234"]
    for export_id, result in zip(ids[:2] + ids[3:], finished[:2] + finished[3:], strict=True):
        _finish(sessions, export_id, result)
    with sessions.begin() as session:
        exports.reject(session, ids[2], "no")
        files = exports.device_files(session)
    assert [(f.name, f.version, f.sha256, f.bytes, f.min_runtime, f.percent) for f in files] == [
        ("fraud/champion/none.tflite", 1, "2" * 64, 2, "1.0", None)
    ]


def test_an_older_export_for_an_older_runtime_keeps_the_runtime_in_its_name(
    sessions: Sessions, store: Store
) -> None:
    publish_ready(sessions, store)
    promote(sessions, 1)
    for digit, runtime in (("1", "1.0"), ("2", "2.0")):
        _finish(sessions, _create(sessions, store), FinishedExport("ready", {}, digit * 64, 1, None, runtime))
    with db.reading(sessions) as session:
        files = {file.name: file.sha256 for file in exports.device_files(session)}
    assert files == {
        "fraud/champion/none.tflite": "2" * 64,
        "fraud/champion/none.1.0.tflite": "1" * 64,
    }


@pytest.mark.parametrize("percent", [0, 30, 99, 100, None])
def test_a_rollout_provides_the_new_file_beside_the_previous_one(
    sessions: Sessions, store: Store, percent: int | None
) -> None:
    publish_ready(sessions, store, count=2)
    for number in (1, 2):
        finished = FinishedExport("ready", {}, str(number) * 64, 1, None, "1.0")
        _finish(sessions, _create(sessions, store, number), finished)
    promote(sessions, 1)
    with sessions.begin() as session:
        aliases.promote(session, "fraud", "champion", 2, by="ann", edge_percent=percent)
    with db.reading(sessions) as session:
        files = {file.name: (file.version, file.percent) for file in exports.device_files(session)}
    plain, rollout = "fraud/champion/none.tflite", "fraud/champion/none.rollout.tflite"
    if percent in (None, 100):
        assert files == {plain: (2, None)}
    else:
        assert files == {plain: (1, None)} | ({rollout: (2, percent)} if percent else {})
