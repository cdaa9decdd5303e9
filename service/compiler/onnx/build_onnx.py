"""Build an ONNX version: the published graph itself is served, under the signature's names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from registry.build_messages import BuildRequest, BuildResult
from service.compiler.measure import comparison_rows
from service.compiler.onnx.upload import OnnxUpload
from service.compiler.report import BuildReport, ServedForm, measure_metrics, read_example
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
    usable = np.ones(len(rows), dtype=bool) if rows is not None else None
    report.served = ServedForm(
        signature,
        runtime.run,
        rows,
        usable,
        lambda: comparison_rows.rows_by_kind(None, signature, rows),
    )
    built = BuildResult(
        state="ready",
        report={},
        signature=signature,
        runtime="onnx",
        runtime_reason="published as ONNX; there is no estimator to compare it with",
        servable=SERVABLE,
    )
    truth = None if sample is None else sample.true_values(signature.outputs)
    if truth is not None and rows is not None:
        built.metrics = measure_metrics(signature, runtime.run(rows), truth, report)
    return built
