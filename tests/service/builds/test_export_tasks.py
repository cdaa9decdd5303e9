"""Exports through the supervisor: whatever happens to a child or a server, an export is whole or is not."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import joblib
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression
from sqlalchemy import select, update

from registry import db, exports, models, queue, versions
from registry.artifacts import Store
from registry.build_messages import BuildResult, ExportBounds
from registry.exports import NewExport
from registry.tables import ExportRow, TaskRow, now
from registry.vocabulary import BUILD_TASK, EXPORT_TASK, SUPERVISOR_TASKS
from service.builds.supervisor import Supervisor
from service.config import Settings
from tests.service.builds.jobs import signature_of, table
from tests.service.builds.odd_models import Loading, crash, wait, wait_once
from tests.service.builds.processes import ends, read_when_written, start

Export = Callable[..., int]
Changes = SimpleQueue[float]


@pytest.fixture
def export(sessions: db.Sessions, store: Store, tmp_path: Path) -> Export:
    """Ask for an export of a version that is ready; the export's id."""

    def export(loading: tuple[Any, ...] = (), new: NewExport = NewExport()) -> int:  # noqa: B008 - frozen
        rows = table(100)
        model = LogisticRegression().fit(rows.drop(columns="y"), rows["y"])
        file = tmp_path / "model.joblib"
        joblib.dump(Loading(model, *loading) if loading else model, file)
        published = versions.NewVersion("m", store.put_file(file).sha256, "sklearn-joblib")
        built = BuildResult(state="ready", report={}, signature=signature_of(model, None), runtime="isolated")
        with sessions.begin() as session:
            version = versions.publish(session, store, published, by="test")
            queue.cancel(session, BUILD_TASK, str(version.id))
            versions.finish_build(session, version.id, built)
            return exports.create(session, store, "m", 1, new, by="test").id

    return export


def row(sessions: db.Sessions, export_id: int) -> ExportRow:
    with sessions() as session:
        found = session.get(ExportRow, export_id)
        assert found is not None
        return found


def reason(sessions: db.Sessions, export_id: int) -> str:
    found = row(sessions, export_id)
    assert (found.state, found.blob, found.zstd) == ("rejected", None, None)
    assert found.report is not None
    return str(found.report["reason"])


def test_an_export_becomes_ready_with_both_its_files_in_the_store(
    running: Supervisor,
    export: Export,
    sessions: db.Sessions,
    store: Store,
    changes: Changes,
    settings: Settings,
) -> None:
    export_id = export()
    running.wake()
    changes.get(timeout=60)
    found = row(sessions, export_id)
    assert found.state == "ready", found.report
    assert found.blob is not None
    assert found.zstd is not None
    content = store.path(found.blob).read_bytes()
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (found.blob, found.bytes)
    packed = store.path(found.zstd).read_bytes()
    assert pa.Codec("zstd").decompress(packed, len(content), asbytes=True) == content
    assert found.min_runtime
    assert list((settings.home / "tmp").iterdir()) == []


def test_an_export_outside_of_its_bounds_is_rejected_and_leaves_no_file(
    running: Supervisor, export: Export, sessions: db.Sessions, store: Store, changes: Changes
) -> None:
    export_id = export(new=NewExport(bounds=ExportBounds(max_bytes=10)))
    blobs = len(list(store))
    running.wake()
    changes.get(timeout=60)
    assert "the bound is 10" in reason(sessions, export_id)
    assert len(list(store)) == blobs


def test_an_export_beyond_its_time_is_rejected(
    settings: Settings, sessions: db.Sessions, store: Store, export: Export, changes: Changes, tmp_path: Path
) -> None:
    export_id = export((wait, str(tmp_path / "pid")))
    hasty = settings.model_copy(update={"build_timeout_s": 3.0})
    running = Supervisor(hasty, sessions, store, on_change=lambda: changes.put(time.monotonic()))
    running.start()
    try:
        changes.get(timeout=60)
    finally:
        running.stop(5)
    assert reason(sessions, export_id) == "the export was ended after 3 s (TRIVIUM_BUILD_TIMEOUT_S)"
    assert ends(int(read_when_written(tmp_path / "pid")))


def test_an_export_that_crashes_its_process_is_rejected(
    running: Supervisor, export: Export, sessions: db.Sessions, changes: Changes
) -> None:
    export_id = export((crash,))
    running.wake()
    changes.get(timeout=60)
    assert "the export's process crashed with SIGSEGV" in reason(sessions, export_id)


def test_an_export_whose_process_was_killed_is_made_again(
    running: Supervisor, export: Export, sessions: db.Sessions, changes: Changes, tmp_path: Path
) -> None:
    export_id = export((wait_once, str(tmp_path / "pid")))
    running.wake()
    os.kill(int(read_when_written(tmp_path / "pid")), signal.SIGKILL)
    changes.get(timeout=60)
    assert row(sessions, export_id).state == "ready"


def test_an_export_whose_server_was_killed_is_made_whole_by_the_next(
    settings: Settings, sessions: db.Sessions, store: Store, export: Export, changes: Changes, tmp_path: Path
) -> None:
    export_id = export((wait_once, str(tmp_path / "pid")))
    server = start(settings.home)
    child = int(read_when_written(tmp_path / "pid"))
    server.kill()
    server.wait()
    assert ends(child)
    left = row(sessions, export_id)
    assert (left.state, left.blob, left.zstd, left.report) == ("building", None, None, None)
    with sessions.begin() as session:  # ten seconds pass
        session.execute(update(TaskRow).values(lease_until=now() - timedelta(seconds=1)))
    following = Supervisor(settings, sessions, store, on_change=lambda: changes.put(time.monotonic()))
    following.start()
    changes.get(timeout=60)
    following.stop(5)
    found = row(sessions, export_id)
    assert found.state == "ready", found.report
    assert found.blob is not None
    assert hashlib.sha256(store.path(found.blob).read_bytes()).hexdigest() == found.blob


def test_an_export_lost_with_its_server_each_time_is_rejected(
    settings: Settings, sessions: db.Sessions, store: Store, export: Export
) -> None:
    export_id = export()
    with sessions.begin() as session:
        session.execute(
            update(TaskRow)
            .where(TaskRow.kind == EXPORT_TASK)
            .values(
                state=queue.RUNNING, attempt=TaskRow.max_attempts, lease_until=now() - timedelta(seconds=1)
            )
        )
    told = []
    assert Supervisor(settings, sessions, store, lambda: told.append(True)).step() is False
    assert "exports of this model ended with its server" in reason(sessions, export_id)
    assert told


def test_an_export_whose_version_is_gone_is_dropped_for_good(
    settings: Settings, sessions: db.Sessions, store: Store, export: Export
) -> None:
    export()
    with sessions.begin() as session:
        models.remove(session, "m")
    assert Supervisor(settings, sessions, store, lambda: None).step()
    with sessions() as session:
        assert queue.depth(session, SUPERVISOR_TASKS) == 0
        assert session.scalars(select(ExportRow)).all() == []


def test_calibration_rows_that_are_gone_reject_the_export(
    settings: Settings, sessions: db.Sessions, store: Store, export: Export, tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    table(20).to_csv(file, index=False)
    sha256 = store.put_file(file).sha256
    given = {"artifact": sha256, "media_type": "text/csv"}
    export_id = export(new=NewExport(quantize="int8", calibration=given))
    store.delete(sha256)
    assert Supervisor(settings, sessions, store, lambda: None).step()
    assert sha256 in reason(sessions, export_id)
