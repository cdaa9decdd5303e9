"""Build a scikit-learn version: describe the estimator, convert it to ONNX and compare the answers.

When no ONNX graph answers as the estimator does, the estimator itself is served, in an isolated process.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from sklearn.decomposition import NMF, MiniBatchNMF

from registry.build_messages import BuildRequest, BuildResult
from registry.errors import Refused
from registry.media_types import PARQUET
from registry.rows import Rows
from service.compiler import lineage, other_versions, safeload
from service.compiler.measure import comparison_rows, parity, plain_frame, row_independence, tree_thresholds
from service.compiler.onnx import candidates
from service.compiler.onnx.candidates import CandidateChoice, CandidateTrial
from service.compiler.report import BuildReport, ServedForm, measure_metrics, read_example
from service.compiler.signature import composites
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.describe import Described, describe
from service.compiler.signature.estimator import EstimatorRuntime
from service.compiler.trees.forest_table import build_forest_table
from service.runtime.onnx_runtime import OnnxRuntime

SERVABLE = "model.onnx"
SAMPLED_KINDS = ("example", "random")
"""Rows on which the estimator's answers are compared with those to each row alone."""
NMF_TYPES = (NMF, MiniBatchNMF)
"""They solve for all rows of a call together, and stop early for their sum."""
NOT_CONVERTED = CandidateChoice(None, "converting it was not tried")
THRESHOLDS_NOT_COMPARED = (
    "thresholds were not tried: the trees split no column that comes from a numeric feature"
)


def build_sklearn(request: BuildRequest, report: BuildReport) -> BuildResult:
    """Raises `Refused` when the model cannot be loaded or described."""
    corrections = Corrections.read(request.signature)
    with report.step("load"):
        model, fitted_by = _load(request, report)
    with report.step("describe"):
        sample = read_example(request)
        with other_versions.explained(fitted_by):
            described = describe(model, sample, corrections)
        report.warnings.extend(described.warnings)
        if described.encoders:
            report.fields["encoders"] = described.encoders
    signature = described.signature
    runtime = EstimatorRuntime(model, signature)
    out = Path(request.out)

    @cache
    def kinds() -> dict[str, Rows]:
        return comparison_rows.rows_by_kind(model, signature, described.rows)

    def measured_kinds() -> dict[str, Rows]:
        """Also of an estimator that answers but cannot be read, as one of another scikit-learn may be."""
        try:
            return kinds()
        except MemoryError:
            raise
        except Exception:
            return comparison_rows.rows_by_kind(None, signature, described.rows)

    @cache
    def reference() -> list[parity.ReferenceBlock]:
        with report.step("reference"):
            return parity.reference(runtime.run, kinds())

    with report.step("rows"):
        _require_independent_rows(runtime, measured_kinds())
    if request.example is not None and request.example_media_type == PARQUET:
        _compare_plain_frame(runtime, Path(request.example), described, report)
    choice = NOT_CONVERTED
    with report.step("compile"):
        if request.convert:
            choice = candidates.choose(model, signature, runtime.run, reference, out, OnnxRuntime)
    report.fields["candidates"] = [t.to_json() for t in choice.trials]
    built = BuildResult(
        state="ready", report={}, signature=signature, runtime="isolated", runtime_reason=choice.reason
    )
    if choice.chosen is not None and choice.chosen.file is not None:
        choice.chosen.file.rename(out / SERVABLE)
        built.runtime, built.servable = "onnx", SERVABLE
        report.bytes["onnx"] = choice.chosen.bytes
        report.fields["parity"] = _parity_entry(choice.chosen, model)
    served = OnnxRuntime(out / SERVABLE, signature) if built.servable else runtime
    report.served = ServedForm(signature, served.run, described.rows, described.usable, measured_kinds)
    if request.convert:
        built.forest = build_forest_table(model, signature, reference, out, report)
    if described.truth is not None and described.rows is not None:
        built.metrics = measure_metrics(signature, runtime.run(described.rows), described.truth, report)
    return built


def _load(request: BuildRequest, report: BuildReport) -> tuple[Any, str | None]:
    """The unpickled model, and the version of scikit-learn that the file records.

    Its lineage and the warnings about its versions go into the report.
    """
    model = safeload.load(request.artifact)
    recorded = lineage.recorded_versions(Path(request.artifact))
    if request.answers is None:
        other_versions.require_compared(recorded["scikit-learn"])
    made_by, contradictions = lineage.merge_versions(recorded, request.lineage)
    report.lineage["made_by"] = made_by
    report.warnings.extend(contradictions)
    if (warning := lineage.version_warning(made_by, compared=request.answers is not None)) is not None:
        report.warnings.append(warning)
    return model, recorded["scikit-learn"]


def _compare_plain_frame(
    runtime: EstimatorRuntime, example: Path, described: Described, report: BuildReport
) -> None:
    """Raise `Refused`, naming the column, where the example as pandas reads it gets other answers."""
    assert described.rows is not None
    assert described.usable is not None
    with report.step("plain frame"):
        plain_frame.compare(runtime, example, described.rows, described.usable, report.warnings)


def _require_independent_rows(runtime: EstimatorRuntime, kinds: dict[str, Rows]) -> None:
    """Raise `Refused` when the estimator's answer to a row depends on other rows, chance or earlier calls."""
    few = {k: row_independence.sample(v, runtime.signature) for k, v in kinds.items() if k in SAMPLED_KINDS}
    blocks = parity.reference(runtime.run, few)
    if not blocks:
        return
    rows = comparison_rows.concatenated([block.rows for block in blocks])
    dependence = row_independence.find_dependence(runtime.run, rows, runtime.signature)
    if dependence is not None:
        inside = (visit.estimator for visit in composites.walk(runtime.model))
        solvers = [estimator for estimator in inside if isinstance(estimator, NMF_TYPES)]
        hint = (
            f"; fit {type(solvers[0]).__name__} with a smaller tol and a larger max_iter" if solvers else ""
        )
        raise Refused(f"{type(runtime.model).__name__} {dependence.reason}{hint}")


def _parity_entry(chosen: CandidateTrial, model: Any) -> dict[str, Any]:
    """The report's `parity`; `untried` where trees were compared without rows at their thresholds."""
    assert chosen.figures is not None
    entry = parity.report_entry(chosen.figures)
    entry["input_dtype"] = chosen.candidate.floats
    if "threshold" not in chosen.figures.rows and tree_thresholds.has_splits(model):
        entry["untried"] = THRESHOLDS_NOT_COMPARED
    return entry
