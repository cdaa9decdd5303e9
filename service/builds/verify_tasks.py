"""The checks of the build supervisor: each runtime of a version is measured again, in a child of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
from sqlalchemy.orm import Session

from registry import db, verification
from registry.artifacts import Store
from registry.build_messages import VerifyRequest, VerifyResult
from registry.errors import Damaged, NotFound
from registry.verification import CheckedExport, CheckResult, MeasuredVersion
from registry.vocabulary import (
    AGREED,
    DIFFERS,
    FALLBACK_FORMATS,
    READY,
    VERIFY_TASK,
    AnsweringRuntime,
    Fallback,
    Format,
    Quantize,
    Runtime,
)
from service import telemetry
from service.builds import oneshot
from service.builds.forkserver import ForkServer
from service.builds.protocol import CHECK
from service.builds.task_kinds import store_file
from service.config import Settings
from service.runtime import libraries, measured_bounds

Beat = Callable[[], None]


class NotMeasurable(Exception):
    """The stored rows are damaged, or another release of Trivium wrote them in another form."""


class VerifyTasks:
    """Measure a version, and its exports, on the rows of their builds."""

    kind = VERIFY_TASK
    reject = staticmethod(verification.reject)

    def __init__(self, settings: Settings, sessions: db.Sessions, store: Store, forks: ForkServer) -> None:
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._forks = forks

    def run(self, subject: int, out: Path, beat: Beat) -> CheckResult:
        with db.reading(self._sessions) as session:
            version = verification.inputs(session, subject)
        try:
            self._store.verified_path(version.measured)
            return VersionCheck(self, version, out, beat).run()
        except (NotMeasurable, NotFound, Damaged, OSError) as error:
            reason = f"the measured rows cannot be read ({error}); publish the version again"
            return CheckResult(DIFFERS, {}, {}, reason=reason, measurable=False)

    def record(self, session: Session, subject: int, result: CheckResult) -> str:
        version = verification.finish(session, subject, result)
        return f"{version.model.name}:{version.number}"

    def observe(self, name: str, result: CheckResult, seconds: float) -> dict[str, object]:
        telemetry.CHECKS.labels(result.state).inc()
        return {"version": name, "state": result.state, "fallback": result.fallback, "reason": result.reason}

    def measure(
        self,
        version: MeasuredVersion,
        runtime: AnsweringRuntime,
        blob: str,
        measured: str,
        tolerance: float,
        out: Path,
        beat: Beat,
    ) -> VerifyResult:
        """Run one runtime in a child. A runtime that crashes or hangs does not agree."""
        try:
            request = VerifyRequest(
                runtime=runtime,
                file=str(self._store.verified_path(blob).absolute()),
                measured=str(self._store.verified_path(measured).absolute()),
                signature=version.signature,
                tolerance=tolerance,
                out=str(out),
                memory_mb=self._settings.build_memory_mb,
            )
        except (NotFound, Damaged, OSError) as error:
            return VerifyResult(state="rejected", report={"reason": str(error)})
        return oneshot.run(self._forks, CHECK, request, self._settings.build_timeout_s, beat)

    def store_measured(self, out: Path, file: str) -> str:
        return store_file(self._store, out, file).sha256


class VersionCheck:
    """One check of a version: which of its runtimes still agree, and what answers instead of the others."""

    def __init__(self, tasks: VerifyTasks, version: MeasuredVersion, out: Path, beat: Beat) -> None:
        self._tasks, self._version, self._out, self._beat = tasks, version, out, beat
        self._measured = version.measured
        self._accepted: str | None = None
        self._figures: dict[str, dict[str, object]] = {}
        self._libraries: dict[str, str] = {}

    def run(self) -> CheckResult:
        fallback, reasons = self._check_runtimes()
        published = reasons[0] if reasons and self._version.runtime == "tflite" else None
        exports = {
            e.id: CheckedExport(self._libraries, published)
            if e.measured is None
            else self._check_export(e, e.measured)
            for e in self._version.exports
        }
        reasons += [f"export {i}: {e.reason}" for i, e in exports.items() if e.reason is not None]
        return CheckResult(
            state=DIFFERS if reasons else AGREED,
            libraries=self._libraries,
            figures=self._figures,
            fallback=fallback,
            reason="; ".join(reasons) or None,
            measured=self._accepted,
            exports=exports,
        )

    def _check_runtimes(self) -> tuple[Fallback | None, list[str]]:
        """Return what answers instead of the version's own runtimes, and why."""
        version = self._version
        runtime = cast(Runtime, version.runtime)
        reason = self._check_runtime(runtime, version.servable or version.artifact, version.accepts)
        forest_reason = self._check_runtime("forest", version.forest, False) if version.forest else None
        if reason is None:
            return ("online", [forest_reason]) if forest_reason else (None, [])
        reasons = [reason, *([forest_reason] if forest_reason else [])]
        if runtime != "isolated" and version.format in FALLBACK_FORMATS:
            estimator_reason = self._check_runtime("isolated", version.artifact, False)
            if estimator_reason is None:
                return "isolated", reasons
            reasons.append(estimator_reason)
        return "none", reasons

    def _check_runtime(self, runtime: AnsweringRuntime, blob: str, accepts: bool) -> str | None:
        """Return why the runtime does not agree, or None. `accepts`: its answers become the measured ones."""
        tolerance = measured_bounds.TOLERANCES[cast(Format, self._version.format)]
        result = self._tasks.measure(
            self._version, runtime, blob, self._measured, tolerance, self._out, self._beat
        )
        if not result.measurable:
            raise NotMeasurable(result.report["reason"])
        self._note(runtime, result, libraries.versions_for([runtime]))
        if result.state == READY:
            return None
        if accepts and result.measured is not None:
            self._accepted = self._measured = self._tasks.store_measured(self._out, result.measured)
            self._figures[runtime]["accepted"] = True
            return None
        return f"{runtime}: {result.report['reason']}"

    def _check_export(self, export: verification.MeasuredExport, measured: str) -> CheckedExport:
        tolerance = measured_bounds.EXPORT_TOLERANCES[cast(Quantize, export.quantize)]
        result = self._tasks.measure(
            self._version, "tflite", export.blob, measured, tolerance, self._out, self._beat
        )
        installed = result.libraries or libraries.versions_for(["tflite"])
        self._figures[f"export {export.id}"] = result.report
        if result.state == READY or not result.measurable:
            return CheckedExport(installed, None)
        reason = f"LiteRT here no longer gives the answers of this file: {result.report['reason']}"
        return CheckedExport(installed, f"{reason}; export the version again")

    def _note(self, runtime: AnsweringRuntime, result: VerifyResult, installed: dict[str, str]) -> None:
        self._figures[runtime] = msgspec.to_builtins(result.report)
        self._libraries |= result.libraries or installed
