"""Build one version: turn an uploaded model into servable bytes that were measured against it.

Runs in a build child. There is one builder per format; `BUILDERS` is their table.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from registry.build_messages import BuildRequest, BuildResult
from registry.errors import Invalid, Refused
from registry.vocabulary import AnsweringRuntime, Format
from service.compiler import example, foreign_files, sandbox
from service.compiler.build_sklearn import build_sklearn
from service.compiler.keras.build_keras import build_keras
from service.compiler.measure import measured_rows, published_answers
from service.compiler.onnx.build_onnx import build_onnx
from service.compiler.report import BuildReport, rejected_build
from service.compiler.signature.corrections import Corrections
from service.compiler.tflite.build_tflite import build_tflite
from service.runtime import libraries

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
            foreign_files.check(request.artifact, request.format)
            built = BUILDERS[request.format](request, report)
            _warn_of_corrections_without_effect(request, report)
            if request.answers is not None:
                with report.step("answers"):
                    _compare_answers(request, report)
            with report.step("save measured rows"):
                _save_measured_rows(request, report, built)
        except Refused as error:
            built = rejected_build(str(error))
        except Exception as error:
            built = rejected_build(sandbox.explain_failure("build", error, request.memory_mb))
    built.report = {**built.report, **report.to_json()}
    built.lineage = report.lineage
    return built


def _warn_of_corrections_without_effect(request: BuildRequest, report: BuildReport) -> None:
    assert report.served is not None
    inputs = report.served.signature.inputs
    report.warnings.extend(Corrections.read(request.signature).without_effect(inputs))


def _save_measured_rows(request: BuildRequest, report: BuildReport, built: BuildResult) -> None:
    """Save what another release of a library is compared with later."""
    assert report.served is not None
    assert built.runtime is not None
    built.measured = measured_rows.save(Path(request.out), report.served.kinds(), report.served.answer)
    runtimes: list[AnsweringRuntime] = [built.runtime, "forest"] if built.forest else [built.runtime]
    built.libraries = libraries.versions_for(runtimes)


def _compare_answers(request: BuildRequest, report: BuildReport) -> None:
    """Compare with the publisher's answers. Raises `Refused` when the version does not give them."""
    served = report.served
    assert request.answers is not None
    assert served is not None
    if served.rows is None or served.usable is None or request.example is None:
        raise Refused("the answers belong to the rows of an example, but there is no example")
    rows = len(served.usable)
    if rows == example.MAX_ROWS:  # the file may have more
        rows = example.count_rows(request.example, request.example_media_type)
    table = published_answers.read(Path(request.answers), request.answers_media_type, rows)
    tolerance = published_answers.TOLERANCES[request.format]
    try:
        answers = served.answer(served.rows)
    except (Invalid, ValueError, TypeError) as error:  # an estimator's own errors
        raise Refused(f"the model refuses rows of the example, so it gives no answers: {error}") from error
    figures = published_answers.compare(table, served.usable, answers, served.signature, tolerance)
    report.fields["answers"] = figures.to_json()
    if not figures.within:
        raise Refused(figures.explain())
