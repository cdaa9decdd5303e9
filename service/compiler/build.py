"""Build one version: turn an uploaded model into servable bytes that were measured against it.

Runs in a build child. There is one builder per format; `BUILDERS` is their table.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from registry.build_messages import BuildRequest, BuildResult
from registry.errors import Refused
from registry.vocabulary import Format
from service.compiler import sandbox
from service.compiler.build_sklearn import build_sklearn
from service.compiler.keras.build_keras import build_keras
from service.compiler.onnx.build_onnx import build_onnx
from service.compiler.report import BuildReport, rejected_build
from service.compiler.tflite.build_tflite import build_tflite

BUILDERS: dict[Format, Callable[[BuildRequest, BuildReport], BuildResult]] = {
    "sklearn-joblib": build_sklearn,
    "onnx": build_onnx,
    "keras": build_keras,
    "tflite": build_tflite,
}
"""Builders raise `Refused`, with the reason, for a model that cannot be served."""


def build_version(request: BuildRequest) -> BuildResult:
    """Never raises because of the model: a bad one gives `state="rejected"` and the reason in the report.

    Runs in a process that has called `sandbox.confine(request.memory_mb)`, with one thread per library.
    """
    report = BuildReport(request)
    with report.step("total"), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            built = BUILDERS[request.format](request, report)
        except Refused as error:
            built = rejected_build(str(error))
        except Exception as error:
            built = rejected_build(sandbox.explain_failure("build", error, request.memory_mb))
    built.report = {**built.report, **report.to_json()}
    built.lineage = report.lineage
    return built
