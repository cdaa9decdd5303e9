"""Measure a runtime again on the rows of a build, after a library has changed.

Runs in a child of its own, because a runtime of another release may crash.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from registry.build_messages import VerifyRequest, VerifyResult
from registry.errors import Invalid, Refused, Unavailable
from service.compiler import safeload, sandbox
from service.compiler.measure import measured_rows, parity
from service.compiler.signature.estimator import EstimatorRuntime
from service.compiler.trees.forest_table import require_same_answers_alone
from service.runtime import kernel_code, libraries
from service.runtime.forest_runtime import ForestRuntime
from service.runtime.onnx_runtime import OnnxRuntime
from service.runtime.tflite_runtime import TfliteRuntime


def verify_runtime(request: VerifyRequest) -> VerifyResult:
    """Never raises because of the model: a runtime that fails gives `state="rejected"` and the reason."""
    installed = libraries.versions_for([request.runtime])
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            result = _measure(request)
        except (Refused, Invalid, Unavailable) as error:
            result = VerifyResult(state="rejected", report={"reason": str(error)})
        except Exception as error:
            reason = sandbox.explain_failure("check", error, request.memory_mb)
            result = VerifyResult(state="rejected", report={"reason": reason})
    result.libraries = installed
    return result


def _measure(request: VerifyRequest) -> VerifyResult:
    try:
        blocks = measured_rows.read(Path(request.measured))
    except Refused as error:
        return VerifyResult(state="rejected", report={"reason": str(error)}, measurable=False)
    runtime = _start(request)
    figures = measured_rows.compare(blocks, runtime.run, request.signature, request.tolerance)
    if figures.error is not None:  # no figures: nothing was compared
        return VerifyResult(state="rejected", report={"reason": f"it fails on {figures.error}"})
    report = parity.report_entry(figures, request.tolerance)
    if figures.within:
        if isinstance(runtime, ForestRuntime):
            require_same_answers_alone(runtime, blocks)
        return VerifyResult(state="ready", report=report)
    measured = measured_rows.save(Path(request.out), {b.kind: b.rows for b in blocks}, runtime.run)
    report["reason"] = (
        f"{figures.label_mismatches} labels differ and {figures.beyond} numbers are off by up to "
        f"{figures.largest_difference:.2g} in {sum(figures.rows.values())} rows, most on {figures.worst} rows"
    )
    return VerifyResult(state="rejected", report=report, measured=measured)


def _start(request: VerifyRequest) -> Any:
    file = Path(request.file)
    if request.runtime == "onnx":
        return OnnxRuntime(file, request.signature)
    if request.runtime == "tflite":
        return TfliteRuntime(file, request.signature)
    if request.runtime == "isolated":
        return EstimatorRuntime(safeload.load(file), request.signature)
    return ForestRuntime(file, request.signature, kernel_code.load_or_compile())
