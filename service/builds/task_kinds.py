"""The kinds of work that the queue has for a child: builds and exports, one small class for each.

Both go the same way: read what the task is about, have a child do it, put the files that it made into the
store, and then, in one transaction that the supervisor owns, record what came of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar, cast

import msgspec
from sqlalchemy.orm import Session

from registry import db, exports, versions
from registry.artifacts import Blob, Store
from registry.build_records import BuildJob, Built, Exported, ExportJob
from registry.errors import NotFound
from registry.vocabulary import BUILD_TASK, EXPORT_TASK, Format
from service import telemetry
from service.builds import oneshot
from service.builds.forkserver import ForkServer
from service.config import Settings

Beat = Callable[[], None]
Made = TypeVar("Made")


class Work(Protocol[Made]):
    """`subject` is the id of what a task is for. It may be deleted at any time: then all raise `NotFound`."""

    kind: str  # of the tasks

    def do(self, subject: int, out: Path, beat: Beat) -> Made:
        """Have a child do it in the empty directory `out`. Raises what `oneshot` raises."""
        ...

    def record(self, session: Session, subject: int, made: Made) -> str:
        """In the caller's transaction. The version's name, for people."""
        ...

    def reject(self, session: Session, subject: int, reason: str) -> object: ...

    def observe(self, name: str, made: Made, seconds: float) -> dict[str, object]:
        """Count it; what the log says of it."""
        ...


class Builds:
    """An upload becomes what is served."""

    kind = BUILD_TASK

    def __init__(self, settings: Settings, sessions: db.Sessions, store: Store, forks: ForkServer) -> None:
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._forks = forks

    def do(self, subject: int, out: Path, beat: Beat) -> Built:
        with db.reading(self._sessions) as session:
            inputs = versions.build_inputs(session, subject)
        try:
            job = self._job(inputs, out)
        except NotFound as missing:
            return oneshot.rejected(Built, str(missing))
        built = oneshot.build(self._forks, job, self._settings.build_timeout_s, beat)
        if built.report.get("ended") and job.format == "sklearn-joblib":
            built = self._without_converting(job, built, beat)
        made = {name: file for name in ("servable", "forest") if (file := getattr(built, name)) is not None}
        try:
            kept = {name: keep(self._store, out, file).sha256 for name, file in made.items()}
            return msgspec.structs.replace(built, **kept)
        except FileNotFoundError:
            return oneshot.rejected(Built, "the build's answer names a file that it did not write")

    def record(self, session: Session, subject: int, made: Built) -> str:
        version = versions.finish_build(session, subject, made)
        return f"{version.model.name}:{version.number}"

    def reject(self, session: Session, subject: int, reason: str) -> object:
        return versions.reject(session, subject, reason)

    def observe(self, name: str, made: Built, seconds: float) -> dict[str, object]:
        telemetry.BUILDS.labels(made.state, made.runtime or "").inc()
        telemetry.BUILD_SECONDS.observe(seconds)
        if made.state == versions.READY and made.runtime == "isolated":
            telemetry.FALLBACKS.labels(name.partition(":")[0]).inc()
        reason = made.report.get("reason")
        return {"version": name, "state": made.state, "runtime": made.runtime, "reason": reason}

    def _without_converting(self, job: BuildJob, ended: Built, beat: Beat) -> Built:
        """A converter that hangs or crashes is no reason not to serve the model: it stays a pickle then."""
        again = msgspec.structs.replace(job, convert=False)
        built = oneshot.build(self._forks, again, self._settings.build_timeout_s, beat)
        if built.state != versions.READY:
            return ended
        reason = f"it was not converted: {ended.report['reason']}"
        return msgspec.structs.replace(built, runtime_reason=reason)

    def _job(self, inputs: versions.BuildInputs, out: Path) -> BuildJob:
        return BuildJob(
            artifact=str(self._store.path(inputs.artifact).absolute()),
            format=cast(Format, inputs.format),  # `versions.publish` has checked it
            out=str(out),
            example=str(self._store.path(inputs.example).absolute()) if inputs.example else None,
            example_media_type=inputs.example_media_type,
            target=inputs.target,
            signature=inputs.signature,
            lineage=inputs.lineage,
            memory_mb=self._settings.build_memory_mb,
        )


class Exports:
    """A ready version becomes a .tflite, and the same compressed."""

    kind = EXPORT_TASK

    def __init__(self, settings: Settings, sessions: db.Sessions, store: Store, forks: ForkServer) -> None:
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._forks = forks

    def do(self, subject: int, out: Path, beat: Beat) -> exports.Finished:
        with db.reading(self._sessions) as session:
            inputs = exports.inputs(session, subject)
        try:
            made = oneshot.export(self._forks, self._job(inputs, out), self._settings.build_timeout_s, beat)
        except NotFound as missing:
            made = oneshot.rejected(Exported, str(missing))
        if made.state == versions.READY:
            try:
                return self._kept(made, out)
            except FileNotFoundError:
                made = oneshot.rejected(Exported, "the export's answer names a file that it did not write")
        return exports.Finished(state=made.state, report=made.report)

    def record(self, session: Session, subject: int, made: exports.Finished) -> str:
        version = exports.finish(session, subject, made).version
        return f"{version.model.name}:{version.number}"

    def reject(self, session: Session, subject: int, reason: str) -> object:
        return exports.reject(session, subject, reason)

    def observe(self, name: str, made: exports.Finished, seconds: float) -> dict[str, object]:
        telemetry.EXPORTS.labels(made.state).inc()
        telemetry.EXPORT_SECONDS.observe(seconds)
        return {"version": name, "state": made.state, "reason": made.report.get("reason")}

    def _kept(self, made: Exported, out: Path) -> exports.Finished:
        plain, zstd = (keep(self._store, out, name or "") for name in (made.file, made.zstd))
        return exports.Finished(
            state=made.state,
            report=made.report,
            blob=plain.sha256,
            bytes=plain.bytes,
            zstd=zstd.sha256,
            min_runtime=made.min_runtime,
        )

    def _job(self, inputs: exports.ExportInputs, out: Path) -> ExportJob:
        example, calibration = inputs.example or {}, inputs.calibration or {}
        return ExportJob(
            artifact=str(self._store.path(inputs.artifact).absolute()),
            format=cast(Format, inputs.format),
            signature=inputs.signature,
            model=inputs.model,
            version=inputs.version,
            out=str(out),
            quantize=inputs.quantize,
            bounds=inputs.bounds,
            example=self._path(example),
            example_media_type=example.get("media_type"),
            target=inputs.target,
            calibration=self._path(calibration),
            calibration_media_type=calibration.get("media_type"),
            memory_mb=self._settings.build_memory_mb,
        )

    def _path(self, given: dict[str, str]) -> str | None:
        return str(self._store.path(given["artifact"]).absolute()) if given else None


def keep(store: Store, out: Path, name: str) -> Blob:
    """Put a file that a child made into the store. The child named it, so the name is not trusted.

    Raises `FileNotFoundError` when there is no such plain file in `out`.
    """
    file = out / Path(name).name
    if file.is_symlink() or not file.is_file():
        raise FileNotFoundError(name)
    return store.put_file(file)
