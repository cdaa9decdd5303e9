"""Build a .tflite version: LiteRT serves the published file, or a copy with the signature's names."""

from __future__ import annotations

from pathlib import Path

from registry.build_messages import BuildRequest, BuildResult
from service.compiler.report import BuildReport, read_example, record_upload
from service.compiler.signature.corrections import Corrections
from service.compiler.tflite.tflite_upload import TfliteUpload
from service.runtime.tflite_runtime import TfliteRuntime

SERVABLE = "model.tflite"


def build_tflite(request: BuildRequest, report: BuildReport) -> BuildResult:
    """Raises `Refused` when the file does not pass the gate or fails on rows."""
    with report.step("check"):
        sample = read_example(request)
        upload = TfliteUpload(Path(request.artifact), sample, Corrections.read(request.signature))
    file = Path(request.out) / SERVABLE
    with report.step("trial"):
        signature, rows, runtime, copied = upload.serve(file, TfliteRuntime)
    report.warnings.extend(upload.warnings)
    return BuildResult(
        state="ready",
        report={},
        signature=signature,
        runtime="tflite",
        runtime_reason="published as .tflite; there is no other model to compare it with",
        metrics=record_upload(signature, runtime.run, rows, sample, report),
        servable=SERVABLE if copied else None,
    )
