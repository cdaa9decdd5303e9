"""Builds through the supervisor, with real children: results, crashes, shutdown and lost servers."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression
from sqlalchemy import select, update

from registry import aliases, db, queue, versions
from registry.artifacts import Store
from registry.tables import TaskRow, VersionRow, now
from registry.vocabulary import SUPERVISOR_TASKS
from service.builds import oneshot, supervised_process, supervisor
from service.builds.forkserver import ForkServer
from service.builds.supervisor import Supervisor
from service.config import Settings
from tests.service.builds import small_template
from tests.service.builds.misbehaving_models import HangsInConversion, KillsItselfOnLoad, WaitsOnLoad
from tests.service.builds.processes import read_when_written, start_supervisor, wait_for_end
from tests.service.builds.small_template import pid_file
from tests.service.shared_template import SharedTemplate

Publish = Callable[..., int]


@pytest.fixture
def publish(sessions: db.Sessions, store: Store, tmp_path: Path) -> Publish:
    """Return a function that publishes a model and returns the version's id."""

    def publish(model: Any, name: str = "m", **kwargs: Any) -> int:
        file = tmp_path / "model.joblib"
        joblib.dump(model, file)
        new = versions.NewVersion(name, store.put_file(file).sha256, "sklearn-joblib", **kwargs)
        with sessions.begin() as session:
            return versions.publish(session, store, new, by="test").id

    return publish


def forest() -> RandomForestClassifier:
    X = np.random.default_rng(0).normal(size=(100, 3))
    return RandomForestClassifier(5, random_state=0).fit(X, X[:, 0] > 0)


def lease(sessions: db.Sessions) -> datetime:
    with sessions() as session:
        deadline = session.scalars(select(TaskRow.lease_until)).one()
        assert deadline is not None
        return deadline


def reason(sessions: db.Sessions, version_id: int) -> str:
    row = version(sessions, version_id)
    assert row.state == "rejected"
    assert row.report is not None
    return str(row.report["reason"])


def version(sessions: db.Sessions, version_id: int) -> VersionRow:
    with sessions() as session:
        row = session.get(VersionRow, version_id)
        assert row is not None
        return row


def test_a_published_forest_becomes_ready_with_its_servable_in_the_store(
    running: Supervisor, publish: Publish, sessions: db.Sessions, store: Store, changes: SimpleQueue[float]
) -> None:
    version_id = publish(forest(), alias="champion")
    running.wake()
    changes.get(timeout=60)
    row = version(sessions, version_id)
    assert (row.state, row.runtime) == ("ready", "onnx"), row.report
    assert row.servable is not None
    assert row.forest is not None
    assert all(store.path(blob).stat().st_size > 0 for blob in (row.servable, row.forest))
    with sessions() as session:
        assert aliases.get(session, "m", "champion").version_id == version_id
    assert running.forks.problem() is None


def test_a_build_leaves_no_file_in_the_temporary_directory(
    running: Supervisor, publish: Publish, settings: Settings, changes: SimpleQueue[float]
) -> None:
    publish(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]))
    running.wake()
    changes.get(timeout=60)
    assert list((settings.home / "tmp").iterdir()) == []


def test_waking_starts_a_build_without_waiting_for_the_next_poll(
    running: Supervisor, publish: Publish, changes: SimpleQueue[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "POLL_S", 3600)
    for _ in range(2):  # the thread may have found the first one in its initial poll
        publish(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]))
        running.wake()
        changes.get(timeout=60)


def test_a_build_is_retried_when_the_template_is_killed(
    settings: Settings,
    publish: Publish,
    sessions: db.Sessions,
    store: Store,
    changes: SimpleQueue[float],
    own_forks: ForkServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "RETRY_S", 0.0)
    version_id = publish(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]))
    running = Supervisor(settings, sessions, store, lambda: changes.put(time.monotonic()), own_forks)
    running.start()
    try:
        child = int(read_when_written(pid_file(store.path(version(sessions, version_id).artifact))))
        template = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(template, signal.SIGKILL)
        changes.get(timeout=60)
    finally:
        running.stop(5)
    assert reason(sessions, version_id) == small_template.REASON  # the answer of the next child


def test_a_build_that_is_killed_each_time_is_rejected_with_the_reason(
    running: Supervisor,
    publish: Publish,
    sessions: db.Sessions,
    changes: SimpleQueue[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "RETRY_S", 0.0)
    version_id = publish(KillsItselfOnLoad().fit([[0.0]], [0.0]))
    running.wake()
    changes.get(timeout=60)
    assert "memory ran out" in reason(sessions, version_id)
    with sessions() as session:
        assert queue.depth(session, SUPERVISOR_TASKS) == 0


def test_stopping_returns_the_build_to_the_queue_without_counting_the_attempt(
    settings: Settings, publish: Publish, sessions: db.Sessions, store: Store, own_forks: ForkServer
) -> None:
    version_id = publish(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]))
    first = Supervisor(settings, sessions, store, lambda: None, own_forks)
    first.start()
    child = int(read_when_written(pid_file(store.path(version(sessions, version_id).artifact))))
    began = time.monotonic()
    first.stop(60)
    assert time.monotonic() - began < 30  # the child would wait until the time limit of the build, 60 s
    assert wait_for_end(child)
    assert version(sessions, version_id).state == "building"
    with sessions.begin() as session:
        task = queue.claim(session, SUPERVISOR_TASKS, "the next server")
    assert task is not None
    assert task.attempt == 1  # the interrupted one does not count


def test_a_build_whose_server_was_killed_is_finished_by_the_next_server(
    settings: Settings,
    publish: Publish,
    sessions: db.Sessions,
    store: Store,
    changes: SimpleQueue[float],
) -> None:
    version_id = publish(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]))
    server = start_supervisor(settings.home)
    child = int(read_when_written(pid_file(store.path(version(sessions, version_id).artifact))))
    server.kill()
    server.wait()
    assert wait_for_end(child)
    with sessions.begin() as session:  # the lease expires
        session.execute(update(TaskRow).values(lease_until=now() - timedelta(seconds=1)))
    next_server = Supervisor(
        settings, sessions, store, lambda: changes.put(time.monotonic()), SharedTemplate()
    )
    next_server.start()
    changes.get(timeout=60)
    next_server.stop(5)
    assert version(sessions, version_id).state == "ready"


def test_a_build_whose_server_dies_at_every_attempt_is_rejected(
    settings: Settings, publish: Publish, sessions: db.Sessions, store: Store
) -> None:
    version_id = publish(forest())
    with sessions.begin() as session:
        session.execute(
            update(TaskRow).values(
                state=queue.RUNNING, attempt=TaskRow.max_attempts, lease_until=now() - timedelta(seconds=1)
            )
        )
    notifications = []
    assert Supervisor(settings, sessions, store, lambda: notifications.append(True)).step() is False
    assert "the server stopped during" in reason(sessions, version_id)
    assert notifications


def test_heartbeats_extend_the_lease_of_a_slow_build(
    running: Supervisor,
    publish: Publish,
    sessions: db.Sessions,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(oneshot, "BEAT_INTERVAL_S", 0.05)
    file = tmp_path / "pid"
    publish(WaitsOnLoad(str(file)).fit([[0.0]], [0.0]))
    running.wake()
    read_when_written(file)
    lease_until = now() + timedelta(seconds=1)
    with sessions.begin() as session:
        session.execute(update(TaskRow).values(lease_until=lease_until))
    deadline = time.monotonic() + 10
    while lease(sessions) <= lease_until:
        assert time.monotonic() < deadline, "no heartbeat extended the lease"
        time.sleep(0.02)


def test_a_missing_artifact_rejects_the_version(
    settings: Settings, publish: Publish, sessions: db.Sessions, store: Store
) -> None:
    version_id = publish(forest())
    store.delete(version(sessions, version_id).artifact)
    assert Supervisor(settings, sessions, store, on_change=lambda: None).step()
    assert "there is no artifact" in reason(sessions, version_id)


def test_only_old_build_directories_are_deleted(tmp_path: Path) -> None:
    stale, fresh, other = tmp_path / "build-a", tmp_path / "build-b", tmp_path / "other"
    for directory in (stale, fresh, other):
        directory.mkdir()
        (directory / "file").write_bytes(b"x")
    for directory in (stale, other):
        os.utime(directory, (0, 0))
    supervisor.delete_abandoned(tmp_path, older_than_s=60)
    assert sorted(tmp_path.iterdir()) == [fresh, other]


def test_a_template_that_cannot_start_rejects_no_version(
    settings: Settings, sessions: db.Sessions, store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised_process, "BACKOFF_S", 0.02)
    monkeypatch.setattr(sys, "executable", "/bin/false")  # every template ends at once
    version_id = publish(forest())
    running = Supervisor(settings, sessions, store, on_change=lambda: None)
    running.start()
    try:
        deadline = time.monotonic() + 30
        while running.forks.problem() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "the build template" in str(running.forks.problem())
        assert running.step() is False
    finally:
        running.stop(5)
    assert version(sessions, version_id).state == "building"
    with sessions() as session:
        task = session.scalars(select(TaskRow)).one()
        assert (task.state, task.attempt) == ("queued", 0)


def test_a_model_whose_converter_hangs_is_served_as_a_pickle(
    settings: Settings, sessions: db.Sessions, store: Store, publish: Publish
) -> None:
    version_id = publish(HangsInConversion().fit([[0.0], [1.0]], [0.0, 1.0]))
    short_timeout = settings.model_copy(update={"build_timeout_s": 2.0})
    running = Supervisor(short_timeout, sessions, store, lambda: None, SharedTemplate())
    running.start()
    try:
        deadline = time.monotonic() + 60
        while version(sessions, version_id).state == "building" and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        running.stop(5)
    row = version(sessions, version_id)
    assert (row.state, row.runtime) == ("ready", "isolated"), row.report
    assert (
        row.runtime_reason == "it was not converted: the build was ended after 2 s (TRIVIUM_BUILD_TIMEOUT_S)"
    )
