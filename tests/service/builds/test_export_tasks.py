"""Exports through the supervisor: an export is complete or leaves no file, even if its process dies."""

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
from service.builds import supervisor
from service.builds.supervisor import Supervisor
from service.config import Settings
from tests.service.builds.export_requests import signature_of, table
from tests.service.builds.misbehaving_models import (
    CallsOnLoad,
    crash_on_load,
    wait_on_first_load,
    wait_on_load,
)
from tests.service.builds.processes import read_when_written, start_supervisor, wait_for_end
from tests.service.builds.small_template import pid_file
from tests.service.shared_template import SharedTemplate

Export = Callable[..., int]
Changes = SimpleQueue[float]


@pytest.fixture
def export(sessions: db.Sessions, store: Store, tmp_path: Path) -> Export:
    """Return a function that creates an export of a ready version and returns the export's id."""

    def export(loading: tuple[Any, ...] = (), new: NewExport = NewExport()) -> int:  # noqa: B008 - frozen
        rows = table(100)
        model = LogisticRegression().fit(rows.drop(columns="y"), rows["y"])
        file = tmp_path / "model.joblib"
        joblib.dump(CallsOnLoad(model, *loading) if loading else model, file)
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
        export = session.get(ExportRow, export_id)
        assert export is not None
        return export


def reason(sessions: db.Sessions, export_id: int) -> str:
    export = row(sessions, export_id)
    assert (export.state, export.blob, export.zstd) == ("rejected", None, None)
    assert export.report is not None
    return str(export.report["reason"])


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
    finished = row(sessions, export_id)
    assert finished.state == "ready", finished.report
    assert finished.blob is not None
    assert finished.zstd is not None
    content = store.path(finished.blob).read_bytes()
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (finished.blob, finished.bytes)
    compressed = store.path(finished.zstd).read_bytes()
    assert pa.Codec("zstd").decompress(compressed, len(content), asbytes=True) == content
    assert finished.min_runtime
    assert list((settings.home / "tmp").iterdir()) == []


def test_an_export_that_exceeds_its_bounds_is_rejected_and_leaves_no_file(
    running: Supervisor, export: Export, sessions: db.Sessions, store: Store, changes: Changes
) -> None:
    export_id = export(new=NewExport(bounds=ExportBounds(max_bytes=10)))
    blobs = len(list(store))
    running.wake()
    changes.get(timeout=60)
    assert "the bound is 10" in reason(sessions, export_id)
    assert len(list(store)) == blobs


def test_an_export_that_exceeds_its_time_limit_is_rejected(
    settings: Settings, sessions: db.Sessions, store: Store, export: Export, changes: Changes, tmp_path: Path
) -> None:
    export_id = export((wait_on_load, str(tmp_path / "pid")))
    short_timeout = settings.model_copy(update={"build_timeout_s": 1.0})
    running = Supervisor(
        short_timeout, sessions, store, lambda: changes.put(time.monotonic()), SharedTemplate()
    )
    running.start()
    try:
        changes.get(timeout=60)
    finally:
        running.stop(5)
    assert reason(sessions, export_id) == "the export was ended after 1 s (TRIVIUM_BUILD_TIMEOUT_S)"
    assert wait_for_end(int(read_when_written(tmp_path / "pid")))


def test_an_export_that_crashes_its_process_is_rejected(
    running: Supervisor, export: Export, sessions: db.Sessions, changes: Changes
) -> None:
    export_id = export((crash_on_load,))
    running.wake()
    changes.get(timeout=60)
    assert "the export's process crashed with SIGSEGV" in reason(sessions, export_id)


def test_an_export_whose_process_was_killed_is_retried(
    running: Supervisor,
    export: Export,
    sessions: db.Sessions,
    changes: Changes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "RETRY_S", 0.0)
    export_id = export((wait_on_first_load, str(tmp_path / "pid")))
    running.wake()
    os.kill(int(read_when_written(tmp_path / "pid")), signal.SIGKILL)
    changes.get(timeout=60)
    assert row(sessions, export_id).state == "ready"


def test_an_export_whose_server_was_killed_is_finished_by_the_next_server(
    settings: Settings, sessions: db.Sessions, store: Store, export: Export, changes: Changes
) -> None:
    export_id = export()
    server = start_supervisor(settings.home)
    artifact = row(sessions, export_id).version.artifact
    child = int(read_when_written(pid_file(store.path(artifact))))
    server.kill()
    server.wait()
    assert wait_for_end(child)
    interrupted = row(sessions, export_id)
    assert (interrupted.state, interrupted.blob, interrupted.zstd, interrupted.report) == (
        "building",
        None,
        None,
        None,
    )
    with sessions.begin() as session:  # the lease expires
        session.execute(update(TaskRow).values(lease_until=now() - timedelta(seconds=1)))
    next_server = Supervisor(
        settings, sessions, store, lambda: changes.put(time.monotonic()), SharedTemplate()
    )
    next_server.start()
    changes.get(timeout=60)
    next_server.stop(5)
    finished = row(sessions, export_id)
    assert finished.state == "ready", finished.report
    assert finished.blob is not None
    assert hashlib.sha256(store.path(finished.blob).read_bytes()).hexdigest() == finished.blob


def test_an_export_whose_server_dies_at_every_attempt_is_rejected(
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
    notifications = []
    assert Supervisor(settings, sessions, store, lambda: notifications.append(True)).step() is False
    assert "attempts to export this model" in reason(sessions, export_id)
    assert notifications


def test_an_export_whose_version_was_deleted_is_dropped(
    settings: Settings, sessions: db.Sessions, store: Store, export: Export
) -> None:
    export()
    with sessions.begin() as session:
        models.remove(session, "m")
    assert Supervisor(settings, sessions, store, lambda: None).step()
    with sessions() as session:
        assert queue.depth(session, SUPERVISOR_TASKS) == 0
        assert session.scalars(select(ExportRow)).all() == []


def test_missing_calibration_rows_reject_the_export(
    settings: Settings, sessions: db.Sessions, store: Store, export: Export, tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    table(20).to_csv(file, index=False)
    sha256 = store.put_file(file).sha256
    calibration = {"artifact": sha256, "media_type": "text/csv"}
    export_id = export(new=NewExport(quantize="int8", calibration=calibration))
    store.delete(sha256)
    assert Supervisor(settings, sessions, store, lambda: None).step()
    assert sha256 in reason(sessions, export_id)
