"""A build child's work: load the upload, describe it, compile it, measure it, report."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from registry.build_records import BuildJob, Built
from registry.errors import Refused
from service.compiler import lineage, litert, safeload, sandbox
from service.compiler.measure import comparison_rows, parity, tree_thresholds
from service.compiler.onnx import candidates, upload
from service.compiler.report import Report, measured, read_example, rejected
from service.compiler.signature import describe
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.estimator import Estimator
from service.compiler.trees import measured_table
from service.runtime.onnx_runtime import OnnxRuntime

SERVABLE = "model.onnx"
UNTRIED = candidates.Verdict(None, "converting it was not tried")
UNTRIED_THRESHOLDS = "thresholds were not tried: nothing leads from what the trees split to a numeric feature"


def build(job: BuildJob) -> Built:
    """Never raises for a bad model: that is `state="rejected"` with the reason in the report.

    Runs in a process that has called `sandbox.confine(job.memory_mb)`, with one thread per library.
    """
    report = Report(job)
    with report.step("total"), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            built = _FORMATS[job.format](job, report)
        except Refused as error:
            built = rejected(str(error))
        except Exception as error:
            built = rejected(sandbox.why("build", error, job.memory_mb))
    built.report = {**built.report, **report.to_json()}
    built.lineage = report.lineage
    return built


def _sklearn(job: BuildJob, report: Report) -> Built:
    corrections = Corrections.read(job.signature)
    with report.step("load"):
        model = _load(job, report)
    with report.step("describe"):
        sample = read_example(job)
        described = describe.describe(model, sample, corrections)
        report.warnings.extend(described.warnings)
    signature = described.signature
    estimator = Estimator(model, signature)

    @cache
    def reference() -> list[parity.Block]:
        with report.step("reference"):
            return parity.reference(estimator.run, comparison_rows.kinds(model, signature, described.rows))

    with report.step("compile"):
        verdict = (
            candidates.run(model, signature, reference, Path(job.out), OnnxRuntime)
            if job.convert
            else UNTRIED
        )
    report.fields["candidates"] = [t.to_json() for t in verdict.trials]
    built = Built(
        state="ready", report={}, signature=signature, runtime="isolated", runtime_reason=verdict.reason
    )
    if verdict.chosen is not None and verdict.chosen.file is not None:
        verdict.chosen.file.rename(Path(job.out) / SERVABLE)
        built.runtime, built.servable = "onnx", SERVABLE
        report.bytes["onnx"] = verdict.chosen.bytes
        report.fields["parity"] = _parity(verdict.chosen, model)
    if job.convert:
        built.forest = measured_table.table(model, signature, reference, Path(job.out), report)
    if described.truth is not None:
        assert described.rows is not None
        built.metrics = measured(signature, estimator.run(described.rows), described.truth, report)
    return built


def _onnx(job: BuildJob, report: Report) -> Built:
    corrections = Corrections.read(job.signature)
    path = Path(job.out) / SERVABLE
    with report.step("check"):
        sample = read_example(job)
        adopted = upload.Adopted(Path(job.artifact), sample, corrections)
    with report.step("trial"):
        signature, rows, runtime = adopted.serve(path, OnnxRuntime)
    report.warnings.extend(adopted.warnings)
    report.bytes["onnx"] = path.stat().st_size
    reason = "published as ONNX; there is no estimator to measure it against"
    built = Built(
        state="ready",
        report={},
        signature=signature,
        runtime="onnx",
        runtime_reason=reason,
        servable=SERVABLE,
    )
    if sample is not None and sample.target is not None and rows is not None:
        built.metrics = measured(signature, runtime.run(rows), sample.target, report)
    return built


_FORMATS = {"sklearn-joblib": _sklearn, "onnx": _onnx, "keras": litert.keras, "tflite": litert.tflite}


def _load(job: BuildJob, report: Report) -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = safeload.load(job.artifact)
    told = lineage.told_by(Path(job.artifact), model, caught)
    made, contradictions = lineage.settle(told, job.lineage)
    report.lineage["made_by"] = made
    report.warnings.extend(contradictions)
    if (warning := lineage.warning(made)) is not None:
        report.warnings.append(warning)
    return model


def _parity(chosen: candidates.Trial, model: Any) -> dict[str, Any]:
    assert chosen.figures is not None
    untried = "threshold" not in chosen.figures.rows and len(tree_thresholds.thresholds(model)) > 0
    return {
        "bounds": parity.bounds(),
        "input_dtype": chosen.candidate.floats,
        "rows": chosen.figures.rows,
        "label_mismatches": chosen.figures.label_mismatches,
        "largest_difference": chosen.figures.largest_difference,
        **({"untried": UNTRIED_THRESHOLDS} if untried else {}),
    }
