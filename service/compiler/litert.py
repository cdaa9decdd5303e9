"""Builds whose outcome LiteRT serves: a .keras converted and measured, a .tflite as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from registry.build_records import BuildJob, Built
from registry.errors import Refused
from service.compiler.keras import describe_keras, keras_parity
from service.compiler.keras.load import KerasModel
from service.compiler.measure import parity
from service.compiler.report import Report, measured, read_example
from service.compiler.signature.corrections import Corrections
from service.compiler.tflite.tflite_upload import AsItIs
from service.runtime.tflite_runtime import TfliteRuntime

SERVABLE = "model.tflite"


def keras(job: BuildJob, report: Report) -> Built:
    """Raises `Refused` when the model cannot be loaded, converted, or answers otherwise on LiteRT."""
    corrections = Corrections.read(job.signature)
    out = Path(job.out)
    with report.step("load"):
        model = KerasModel(Path(job.artifact), out, job.memory_mb)
    made_by = {"keras": {"version": model.archive.keras_version, "said_by": "file"}}
    report.lineage["made_by"] = job.lineage.get("made_by", {}) | made_by
    report.lineage["built_by"] |= model.versions
    with report.step("describe"):
        described = describe_keras.describe_model(model, read_example(job), corrections)
    report.warnings.extend([*model.warnings, *described.warnings])
    signature, heads = described.signature, described.heads

    def own(rows: Any) -> Any:
        return model.run(rows, heads, signature)

    with report.step("reference"):
        blocks = parity.reference(own, keras_parity.kinds(signature, described.rows))
    with report.step("convert"):
        file = out / SERVABLE
        file.write_bytes(model.to_tflite(heads, signature))
    report.bytes["tflite"] = file.stat().st_size
    with report.step("parity"):
        figures = parity.compare(
            blocks, TfliteRuntime(file, signature).run, signature, keras_parity.TOLERANCE
        )
    report.fields["parity"] = {
        "bounds": parity.bounds(keras_parity.TOLERANCE),
        "rows": figures.rows,
        "label_mismatches": figures.label_mismatches,
        "largest_difference": figures.largest_difference,
    }
    if not figures.within:
        raise Refused(_drift(figures, signature.outputs[0].name == "values"))
    metrics = {}
    if described.truth is not None and described.rows is not None:
        metrics = measured(signature, own(described.rows), described.truth, report)
    return Built(
        state="ready",
        report={},
        signature=signature,
        runtime="tflite",
        runtime_reason="converted to LiteRT, where it answers as the Keras model does",
        metrics=metrics,
        servable=SERVABLE,
    )


def _drift(figures: parity.Figures, vague: bool) -> str:
    if figures.error:
        return f"the model's LiteRT form fails on {figures.error}"
    return (
        f"the model's LiteRT form answers otherwise than Keras: {figures.label_mismatches} labels differ and "
        f"{figures.beyond} numbers are off by up to {figures.largest_difference:.2g} "
        f"in {sum(figures.rows.values())} rows, most on {figures.worst} rows"
        + (" (if its numbers are features and no targets, give the task transform)" if vague else "")
    )


def tflite(job: BuildJob, report: Report) -> Built:
    """Raises `Refused` when the file does not pass the gate or a trial run."""
    with report.step("check"):
        sample = read_example(job)
        taken = AsItIs(Path(job.artifact), sample, Corrections.read(job.signature))
    file = Path(job.out) / SERVABLE
    with report.step("trial"):
        signature, rows, runtime, copied = taken.serve(file, TfliteRuntime)
    report.warnings.extend(taken.warnings)
    metrics = {}
    if sample is not None and sample.target is not None and rows is not None:
        metrics = measured(signature, runtime.run(rows), sample.target, report)
    return Built(
        state="ready",
        report={},
        signature=signature,
        runtime="tflite",
        runtime_reason="published as .tflite; there is no other model to measure it against",
        metrics=metrics,
        servable=SERVABLE if copied else None,
    )
