"""The task kinds of the build supervisor: builds and exports, one class each.

Both follow the same steps: read the task's subject, run a one-shot child, put the files that it wrote into
the store, and record the result in one transaction, which the supervisor owns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar, cast

import msgspec
from sqlalchemy.orm import Session

from registry import db, exports, versions
from registry.artifacts import Blob, Store
from registry.build_messages import BuildRequest, BuildResult, ExportRequest, ExportResult
from registry.errors import NotFound
from registry.tables import VersionRow
from registry.vocabulary import BUILD_TASK, EXPORT_TASK, FALLBACK_FORMATS, READY, REJECTED, Format
from service import telemetry
from service.builds import oneshot
from service.builds.forkserver import ForkServer
from service.builds.protocol import BUILD, EXPORT
from service.config import Settings

Beat = Callable[[], None]
Result = TypeVar("Result")


class TaskKind(Protocol[Result]):
    """One kind of task. `subject` is the id of the row that a task belongs to.

    The row may be deleted at any time: then every method raises `NotFound`.
    """

    kind: str

    def run(self, subject: int, out: Path, beat: Beat) -> Result:
        """Run a child that writes into the empty directory `out`. Raises what `oneshot.run` raises."""
        ...

    def record(self, session: Session, subject: int, result: Result) -> str:
        """Record the result in the caller's transaction. Return the version's name, for the log."""
        ...

    def reject(self, session: Session, subject: int, /, reason: str) -> object:
        """Reject the version or export, without a result, in the caller's transaction."""
        ...

    def observe(self, name: str, result: Result, seconds: float) -> dict[str, object]:
        """Update the metrics. Return the fields of the log line."""
        ...


class BuildTasks:
    """Compile an upload into the files that are served."""

    kind = BUILD_TASK
    reject = staticmethod(versions.reject)

    def __init__(self, settings: Settings, sessions: db.Sessions, store: Store, forks: ForkServer) -> None:
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._forks = forks

    def run(self, subject: int, out: Path, beat: Beat) -> BuildResult:
        with db.reading(self._sessions) as session:
            version = versions.get_by_id(session, subject)
        try:
            request = self._request(version, out)
        except NotFound as error:
            return oneshot.rejected(BUILD, str(error))
        built = oneshot.run(self._forks, BUILD, request, self._settings.build_timeout_s, beat)
        if built.report.get("ended") and request.format in FALLBACK_FORMATS:
            built = self._without_conversion(request, built, beat)
        return self._store_files(built, out)

    def record(self, session: Session, subject: int, result: BuildResult) -> str:
        version = versions.finish_build(session, subject, result)
        return f"{version.model.name}:{version.number}"

    def observe(self, name: str, result: BuildResult, seconds: float) -> dict[str, object]:
        telemetry.BUILDS.labels(result.state, result.runtime or "").inc()
        telemetry.BUILD_SECONDS.observe(seconds)
        if result.state == READY and result.runtime == "isolated":
            telemetry.FALLBACKS.labels(name.partition(":")[0]).inc()
        reason = result.report.get("reason")
        return {"version": name, "state": result.state, "runtime": result.runtime, "reason": reason}

    def _without_conversion(self, request: BuildRequest, ended: BuildResult, beat: Beat) -> BuildResult:
        """Build again without converting: a converter that takes too long must not reject the model.

        The model is then served as a pickle. If this build fails as well, the first result stands.
        """
        request = msgspec.structs.replace(request, convert=False)
        built = oneshot.run(self._forks, BUILD, request, self._settings.build_timeout_s, beat)
        if built.state != READY:
            return ended
        reason = f"it was not converted: {ended.report['reason']}"
        return msgspec.structs.replace(built, runtime_reason=reason)

    def _store_files(self, built: BuildResult, out: Path) -> BuildResult:
        """Replace the names of the files in `out` by the digests of their blobs."""
        names = ("servable", "forest", "measured")
        files = {name: file for name in names if (file := getattr(built, name)) is not None}
        try:
            digests = {name: store_file(self._store, out, file).sha256 for name, file in files.items()}
        except FileNotFoundError:
            return oneshot.rejected(BUILD, "the build's answer names a file that it did not write")
        return msgspec.structs.replace(built, **digests)

    def _request(self, version: VersionRow, out: Path) -> BuildRequest:
        example, answers = version.example or {}, version.answers or {}
        return BuildRequest(
            artifact=str(self._store.verified_path(version.artifact).absolute()),
            format=cast(Format, version.format),  # `versions.publish` has checked it
            out=str(out),
            example=uploaded_path(self._store, example),
            example_media_type=example.get("media_type"),
            target=version.target,
            answers=uploaded_path(self._store, answers),
            answers_media_type=answers.get("media_type"),
            signature=version.publisher_signature,
            lineage=version.lineage,
            memory_mb=self._settings.build_memory_mb,
        )


class ExportTasks:
    """Export a ready version as a .tflite file, and compress that file."""

    kind = EXPORT_TASK
    reject = staticmethod(exports.reject)

    def __init__(self, settings: Settings, sessions: db.Sessions, store: Store, forks: ForkServer) -> None:
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._forks = forks

    def run(self, subject: int, out: Path, beat: Beat) -> exports.FinishedExport:
        with db.reading(self._sessions) as session:
            inputs = exports.inputs(session, subject)
        try:
            request = self._request(inputs, out)
        except NotFound as error:
            return exports.FinishedExport(state=REJECTED, report={"reason": str(error)})
        exported = oneshot.run(self._forks, EXPORT, request, self._settings.build_timeout_s, beat)
        return self._store_files(exported, out)

    def record(self, session: Session, subject: int, result: exports.FinishedExport) -> str:
        version = exports.finish(session, subject, result).version
        return f"{version.model.name}:{version.number}"

    def observe(self, name: str, result: exports.FinishedExport, seconds: float) -> dict[str, object]:
        telemetry.EXPORTS.labels(result.state).inc()
        telemetry.EXPORT_SECONDS.observe(seconds)
        return {"version": name, "state": result.state, "reason": result.report.get("reason")}

    def _store_files(self, exported: ExportResult, out: Path) -> exports.FinishedExport:
        if exported.state != READY:
            return exports.FinishedExport(state=exported.state, report=exported.report)
        try:
            plain, zstd = (
                store_file(self._store, out, name or "") for name in (exported.file, exported.zstd)
            )
            measured = store_file(self._store, out, exported.measured).sha256 if exported.measured else None
        except FileNotFoundError:
            reason = "the export's answer names a file that it did not write"
            return exports.FinishedExport(state=REJECTED, report={"reason": reason})
        return exports.FinishedExport(
            state=exported.state,
            report=exported.report,
            blob=plain.sha256,
            bytes=plain.bytes,
            zstd=zstd.sha256,
            min_runtime=exported.min_runtime,
            measured=measured,
            libraries=versions.libraries_text(exported.libraries),
        )

    def _request(self, inputs: exports.ExportInputs, out: Path) -> ExportRequest:
        example, calibration = inputs.example or {}, inputs.calibration or {}
        return ExportRequest(
            artifact=str(self._store.verified_path(inputs.artifact).absolute()),
            format=cast(Format, inputs.format),
            signature=inputs.signature,
            model=inputs.model,
            version=inputs.version,
            out=str(out),
            quantize=inputs.quantize,
            bounds=inputs.bounds,
            example=uploaded_path(self._store, example),
            example_media_type=example.get("media_type"),
            target=inputs.target,
            calibration=uploaded_path(self._store, calibration),
            calibration_media_type=calibration.get("media_type"),
            memory_mb=self._settings.build_memory_mb,
        )


def uploaded_path(store: Store, table: dict[str, str]) -> str | None:
    """The local path of an uploaded table, if there is one."""
    return str(store.verified_path(table["artifact"]).absolute()) if table else None


def store_file(store: Store, out: Path, name: str) -> Blob:
    """Put a file that a child wrote into the store. The name comes from the child and is not trusted.

    Raises `FileNotFoundError` when `out` does not contain a regular file of this name.
    """
    file = out / Path(name).name
    if file.is_symlink() or not file.is_file():
        raise FileNotFoundError(name)
    return store.put_file(file)
