"""Build an ONNX version: the published graph itself is served, under the signature's names."""

from __future__ import annotations

from pathlib import Path

from registry.build_messages import BuildRequest, BuildResult
from service.compiler.onnx.upload import OnnxUpload
from service.compiler.report import BuildReport, read_example, record_upload
from service.compiler.signature.corrections import Corrections
from service.runtime.onnx_runtime import OnnxRuntime

SERVABLE = "model.onnx"


def build_onnx(request: BuildRequest, report: BuildReport) -> BuildResult:
    """Raises `Refused` when the graph does not pass the gate or fails on rows."""
    corrections = Corrections.read(request.signature)
    file = Path(request.out) / SERVABLE
    with report.step("check"):
        sample = read_example(request)
        upload = OnnxUpload(Path(request.artifact), sample, corrections)
    with report.step("trial"):
        signature, rows, runtime = upload.prepare(file, OnnxRuntime)
    report.warnings.extend(upload.warnings)
    report.bytes["onnx"] = file.stat().st_size
    return BuildResult(
        state="ready",
        report={},
        signature=signature,
        runtime="onnx",
        runtime_reason="published as ONNX; there is no estimator to compare it with",
        metrics=record_upload(signature, runtime.run, rows, sample, report),
        servable=SERVABLE,
    )
