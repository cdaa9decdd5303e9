"""Builds and exports whose child is a function: files are durable before their version or export is ready."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry import db, exports
from registry.artifacts import Store
from registry.build_messages import BuildRequest, BuildResult, ExportRequest, ExportResult
from registry.exports import NewExport
from registry.tables import ExportRow, VersionRow
from service.builds import oneshot
from service.builds.supervisor import Supervisor
from service.builds.task_kinds import store_file
from service.config import Settings
from tests.harness.durability import Event, recorded
from tests.registry.helpers import SIGNATURE, publish, publish_ready

Request = BuildRequest | ExportRequest
RunInChild = Callable[[Request], BuildResult | ExportResult]
UseChild = Callable[[RunInChild], None]


@pytest.fixture
def supervisor(settings: Settings, sessions: db.Sessions, store: Store) -> Supervisor:
    """A supervisor that starts no process."""
    return Supervisor(settings, sessions, store, lambda: None)


@pytest.fixture
def use_child(monkeypatch: pytest.MonkeyPatch) -> UseChild:
    """Replace the child process by a function that writes files and returns a result."""

    def use(run: RunInChild) -> None:
        def run_here(forks: Any, role: Any, request: Request, timeout_s: float, beat: Any) -> Any:
            beat()
            return run(request)

        monkeypatch.setattr(oneshot, "run", run_here)

    return use


def _built(request: Request) -> BuildResult:
    (Path(request.out) / "model.onnx").write_bytes(b"servable")
    (Path(request.out) / "forest.nodes").write_bytes(b"nodes")
    return BuildResult(
        state="ready",
        report={},
        signature=SIGNATURE,
        runtime="onnx",
        servable="model.onnx",
        forest="forest.nodes",
    )


def _exported(request: Request) -> ExportResult:
    (Path(request.out) / "model.tflite").write_bytes(b"plain")
    (Path(request.out) / "model.zst").write_bytes(b"compressed")
    return ExportResult(state="ready", report={}, file="model.tflite", zstd="model.zst", min_runtime="2.1.0")


def _version(sessions: db.Sessions) -> VersionRow:
    with db.reading(sessions) as session:
        return session.get_one(VersionRow, 1)


def _export(sessions: db.Sessions) -> ExportRow:
    with db.reading(sessions) as session:
        return session.get_one(ExportRow, 1)


def test_a_version_is_ready_after_its_files_are_durable(
    supervisor: Supervisor, sessions: db.Sessions, store: Store, use_child: UseChild
) -> None:
    publish(sessions, store)
    use_child(_built)
    with recorded() as log:
        assert supervisor.step()
    version = _version(sessions)
    assert version.state == "ready"
    assert version.servable is not None
    assert version.forest is not None
    assert store.path(version.servable).read_bytes() == b"servable"
    assert store.path(version.forest).read_bytes() == b"nodes"
    for blob in (version.servable, version.forest):
        assert log.saved(store.path(blob)) < log.committed("versions", "tasks")


def test_an_export_is_ready_after_its_files_are_durable(
    supervisor: Supervisor, sessions: db.Sessions, store: Store, use_child: UseChild
) -> None:
    publish_ready(sessions, store)
    with sessions.begin() as session:
        exports.create(session, store, "fraud", 1, NewExport(), by="ann")
    use_child(_exported)
    with recorded() as log:
        assert supervisor.step()
    export = _export(sessions)
    assert (export.state, export.bytes, export.min_runtime) == ("ready", 5, "2.1.0")
    assert export.blob is not None
    assert export.zstd is not None
    assert store.path(export.blob).read_bytes() == b"plain"
    assert store.path(export.zstd).read_bytes() == b"compressed"
    for blob in (export.blob, export.zstd):
        assert log.saved(store.path(blob)) < log.committed("exports", "tasks")


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_version_whose_files_are_not_durable_stays_in_the_queue(
    supervisor: Supervisor, sessions: db.Sessions, store: Store, use_child: UseChild, step: str
) -> None:
    publish(sessions, store)
    use_child(_built)

    def break_disk(event: Event) -> None:
        if event.kind == step and event.path.is_relative_to(store.root):
            raise OSError(5, "Input/output error")

    with recorded(break_disk), pytest.raises(OSError, match="Input/output"):
        supervisor.step()
    assert (_version(sessions).state, _version(sessions).servable) == ("building", None)
    assert list(store.incoming.iterdir()) == []


def test_a_build_leaves_no_file_of_its_child(
    supervisor: Supervisor, sessions: db.Sessions, store: Store, settings: Settings, use_child: UseChild
) -> None:
    publish(sessions, store)
    use_child(_built)
    supervisor.step()
    assert list((settings.home / "tmp").iterdir()) == []


@pytest.mark.parametrize("missing", ["model.onnx", "forest.nodes"])
def test_a_build_that_names_a_file_that_it_did_not_write_is_rejected(
    supervisor: Supervisor, sessions: db.Sessions, store: Store, use_child: UseChild, missing: str
) -> None:
    def run(request: Request) -> BuildResult:
        built = _built(request)
        (Path(request.out) / missing).unlink()
        return built

    publish(sessions, store)
    use_child(run)
    assert supervisor.step()
    version = _version(sessions)
    assert version.state == "rejected"
    assert version.report is not None
    assert "names a file that it did not write" in version.report["reason"]


@pytest.mark.parametrize("missing", ["model.tflite", "model.zst"])
def test_an_export_that_names_a_file_that_it_did_not_write_is_rejected(
    supervisor: Supervisor, sessions: db.Sessions, store: Store, use_child: UseChild, missing: str
) -> None:
    def run(request: Request) -> ExportResult:
        exported = _exported(request)
        (Path(request.out) / missing).unlink()
        return exported

    publish_ready(sessions, store)
    with sessions.begin() as session:
        exports.create(session, store, "fraud", 1, NewExport(), by="ann")
    use_child(run)
    assert supervisor.step()
    export = _export(sessions)
    assert (export.state, export.blob, export.zstd) == ("rejected", None, None)
    assert "names a file that it did not write" in (export.report or {})["reason"]


def test_only_a_regular_file_in_the_directory_of_the_child_is_stored(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"another file")
    out = tmp_path / "out"
    out.mkdir()
    (out / "link").symlink_to(tmp_path / "secret")
    (out / "directory").mkdir()
    for name in ("link", "directory", "missing", "../secret", str(tmp_path / "secret"), ""):
        with pytest.raises(FileNotFoundError):
            store_file(store, out, name)
    assert list(store) == []
    (out / "secret").write_bytes(b"of the child")
    blob = store_file(store, out, "../secret")
    assert store.path(blob.sha256).read_bytes() == b"of the child"


@pytest.mark.parametrize(("ended", "attempts"), [(True, [True, False]), (False, [True])])
def test_a_conversion_that_took_too_long_is_left_out_and_one_that_crashed_rejects(
    supervisor: Supervisor,
    sessions: db.Sessions,
    store: Store,
    use_child: UseChild,
    ended: bool,
    attempts: list[bool],
) -> None:
    tried: list[bool] = []

    def fail_to_convert(request: Request) -> BuildResult:
        assert isinstance(request, BuildRequest)
        tried.append(request.convert)
        if not request.convert:
            return BuildResult(state="ready", report={}, signature=SIGNATURE, runtime="isolated")
        report = (
            {"reason": "the build was ended after 1 s", "ended": True} if ended else {"reason": "it crashed"}
        )
        return BuildResult(state="rejected", report=report)

    publish(sessions, store)
    use_child(fail_to_convert)
    assert supervisor.step()
    assert tried == attempts
    assert _version(sessions).state == ("ready" if ended else "rejected")
