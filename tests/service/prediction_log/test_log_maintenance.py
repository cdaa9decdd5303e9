"""Maintenance merges small files, deletes what exceeds the limits of a model, and labels with it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from registry import db, labels, prediction_logs
from registry.labels import NewLabel
from registry.prediction_logs import LogSettings
from registry.tables import LabelRow, ModelRow
from service.prediction_log import log_files, log_maintenance
from service.prediction_log.log_maintenance import LogMaintenance, expired_files, mergeable_files
from tests.service.prediction_log.calls import LOG, inputs, prediction_id_of, read, simple_call, write_calls

NOW = datetime.now(UTC)
LONG_AGO = 86_400.0


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[db.Sessions]:
    """A registry with the model m, whose log has no limits."""
    engine = db.connect(f"sqlite:///{tmp_path / 'registry.db'}")
    db.migrate(engine, tmp_path)
    sessions = db.sessions(engine)
    with sessions.begin() as session:
        session.add(ModelRow(id=LOG.model_id, name="m", created_by="test"))
        session.flush()
        prediction_logs.put(session, "m", LogSettings(1.0, None, None), by="test")
    yield sessions
    engine.dispose()


def limit(sessions: db.Sessions, keep_days: int | None, max_mb: int | None = None) -> None:
    with sessions.begin() as session:
        prediction_logs.put(session, "m", LogSettings(0.0, keep_days, max_mb), by="test")


def step(root: Path, sessions: db.Sessions) -> None:
    LogMaintenance(root, sessions).step()


def files(root: Path, version: int = 1) -> list[log_files.LogFile]:
    return log_files.list_files(root / f"m.{LOG.model_id}" / str(version))


def recent(number: int) -> float:
    """A time of today whenever the test runs."""
    return NOW.timestamp() - 1 + number / 1000


def test_sixteen_files_of_a_level_become_one_of_the_next(tmp_path: Path, sessions: db.Sessions) -> None:
    root = tmp_path / "predictions"
    start = datetime(NOW.year, NOW.month, NOW.day, tzinfo=UTC).timestamp()
    for number in range(1, 18):
        write_calls(root, [simple_call(number, start + number)], f"a-{number}")
        if number == 15:
            step(root, sessions)
            assert len(files(root)) == 15
    step(root, sessions)
    assert [f.level for f in files(root)] == [1]
    assert inputs(read(root)) == list(range(1, 18))


def test_the_files_of_a_day_that_is_over_become_one(tmp_path: Path, sessions: db.Sessions) -> None:
    root = tmp_path / "predictions"
    for number in (1, 2, 3):
        write_calls(root, [simple_call(number), simple_call(number + 5, LONG_AGO + number)], f"a-{number}")
        write_calls(root, [simple_call(number, 2 * LONG_AGO + number)], f"b-{number}")
    before = inputs(read(root))
    step(root, sessions)
    assert len(files(root)) == 2
    assert inputs(read(root)) == before
    step(root, sessions)
    assert len(files(root)) == 2


def test_large_files_are_not_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "predictions"
    for number in (1, 2, 3, 4):
        write_calls(root, [simple_call(number)], f"a-{number}")
    size = files(root)[0].path.stat().st_size
    monkeypatch.setattr(log_maintenance, "MERGED_BYTES", size)
    assert mergeable_files(files(root), NOW) == []
    monkeypatch.setattr(log_maintenance, "MERGED_BYTES", 2 * size - 1)
    assert [len(group) for group in mergeable_files(files(root), NOW)] == [2, 2]


def test_rows_older_than_the_limit_are_deleted_with_their_labels(
    tmp_path: Path, sessions: db.Sessions
) -> None:
    root = tmp_path / "predictions"
    write_calls(root, [simple_call(1), simple_call(2)], "a-1")
    write_calls(root, [simple_call(3, recent(3))], "a-2", version=2)
    with sessions.begin() as session:
        labels.put(session, [NewLabel(prediction_id_of(n), 0, 1) for n in (1, 3)], key_id="k")
    step(root, sessions)
    assert inputs(read(root)) == [1, 2, 3]
    limit(sessions, keep_days=30)
    step(root, sessions)
    assert inputs(read(root)) == [3]
    with sessions() as session:
        assert session.scalars(select(LabelRow.prediction_id)).all() == [prediction_id_of(3)]
    limit(sessions, keep_days=0)
    step(root, sessions)
    assert read(root) == []


def test_the_oldest_files_above_the_size_limit_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "predictions"
    for number in (3, 1, 2):
        write_calls(root, [simple_call(number)], f"a-{number}")
    size = files(root)[0].path.stat().st_size
    monkeypatch.setattr(log_maintenance, "MB", 1)
    expired = expired_files(files(root), LogSettings(1.0, None, 2 * size), NOW)
    assert [f.first.timestamp() for f in expired] == [1.0]
    assert expired_files(files(root), LogSettings(1.0, None, 3 * size), NOW) == []


def test_the_log_of_a_deleted_model_is_deleted_with_its_labels(tmp_path: Path, sessions: db.Sessions) -> None:
    root = tmp_path / "predictions"
    write_calls(root, [simple_call(1)], "a-1")
    other = log_files.model_directory(root, "m", LOG.model_id + 1)
    (root / f"m.{LOG.model_id}").rename(other)
    (root / "notes").mkdir()
    with sessions.begin() as session:
        labels.put(session, [NewLabel(prediction_id_of(1), 0, 1)], key_id="k")
    step(root, sessions)
    assert [path.name for path in root.iterdir()] == ["notes"]
    with sessions() as session:
        assert session.scalars(select(LabelRow.row)).all() == []


def test_labels_older_than_every_row_are_deleted(tmp_path: Path, sessions: db.Sessions) -> None:
    root = tmp_path / "predictions"
    write_calls(root, [simple_call(1, recent(1))], "a-1")
    with sessions.begin() as session:
        labels.put(session, [NewLabel(prediction_id_of(n), 0, 1) for n in (5, 6)], key_id="k")
        row = session.scalars(select(LabelRow).where(LabelRow.prediction_id == prediction_id_of(5))).one()
        row.at = NOW - timedelta(days=2)
    step(root, sessions)
    with sessions() as session:
        assert session.scalars(select(LabelRow.prediction_id)).all() == [prediction_id_of(6)]


def test_labels_are_deleted_without_any_log(tmp_path: Path, sessions: db.Sessions) -> None:
    with sessions.begin() as session:
        labels.put(session, [NewLabel(prediction_id_of(n), 0, 1) for n in (5, 6)], key_id="k")
        row = session.scalars(select(LabelRow).where(LabelRow.prediction_id == prediction_id_of(5))).one()
        row.at = NOW - timedelta(days=2)
    step(tmp_path / "predictions", sessions)
    with sessions() as session:
        assert session.scalars(select(LabelRow.prediction_id)).all() == [prediction_id_of(6)]


def test_a_damaged_file_expires_and_stops_no_other_log(tmp_path: Path, sessions: db.Sessions) -> None:
    root = tmp_path / "predictions"
    for number in (1, 2):
        write_calls(root, [simple_call(number)], f"a-{number}").write_bytes(b"PAR1")
    (root / f"m.{LOG.model_id}").rename(root / f"a.{LOG.model_id + 1}")
    with sessions.begin() as session:
        session.add(ModelRow(id=LOG.model_id + 1, name="a", created_by="test"))
        session.flush()
        prediction_logs.put(session, "a", LogSettings(1.0, None, None), by="test")
    write_calls(root, [simple_call(1)], "a-1")
    limit(sessions, keep_days=1)
    step(root, sessions)
    assert read(root) == []
    with sessions.begin() as session:
        prediction_logs.put(session, "a", LogSettings(1.0, 1, None), by="test")
    step(root, sessions)
    assert log_files.list_files(root / f"a.{LOG.model_id + 1}" / "1") == []


def test_merged_files_are_small_beside_the_size_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "predictions"
    for number in range(1, 9):
        write_calls(root, [simple_call(number)], f"a-{number}")
    size = files(root)[0].path.stat().st_size
    monkeypatch.setattr(log_maintenance, "MB", 1)
    assert [len(group) for group in mergeable_files(files(root), NOW)] == [8]
    groups = mergeable_files(files(root), NOW, 2 * size * log_maintenance.KEPT_FILES)
    assert [len(group) for group in groups] == [2, 2, 2, 2]


def test_files_of_killed_processes_are_deleted(
    tmp_path: Path, sessions: db.Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "predictions"
    partial = write_calls(root, [simple_call(1, recent(1))], "a-1").parent / ".x.parquet.partial"
    partial.write_bytes(b"PAR1")
    step(root, sessions)
    assert partial.exists(), "its process may still write"
    monkeypatch.setattr(log_maintenance, "PARTIAL_S", -1.0)
    step(root, sessions)
    assert not partial.exists()
    assert inputs(read(root)) == [1]
