"""Build a Keras version: convert the model to .tflite and compare the two; LiteRT serves the file."""

from __future__ import annotations

from pathlib import Path

from registry.build_messages import BuildRequest, BuildResult
from registry.errors import Refused
from registry.rows import Outputs, Rows
from registry.signature import Signature
from service.compiler.keras import describe_keras, keras_parity
from service.compiler.keras.load import KerasModel
from service.compiler.measure import comparison_rows, parity, row_independence
from service.compiler.report import BuildReport, ServedForm, measure_metrics, read_example
from service.compiler.signature.corrections import Corrections
from service.runtime.tflite_runtime import TfliteRuntime

SERVABLE = "model.tflite"


def build_keras(request: BuildRequest, report: BuildReport) -> BuildResult:
    """Raises `Refused` when the model cannot be loaded or converted, or answers differently on LiteRT."""
    corrections = Corrections.read(request.signature)
    file = Path(request.out) / SERVABLE
    with report.step("load"):
        model = KerasModel(Path(request.artifact), Path(request.out), request.memory_mb)
    keras_version = {"keras": {"version": model.archive.keras_version, "said_by": "file"}}
    report.lineage["made_by"] = request.lineage.get("made_by", {}) | keras_version
    report.lineage["built_by"] |= model.versions
    with report.step("describe"):
        described = describe_keras.describe_model(model, read_example(request), corrections)
    report.warnings.extend([*model.warnings, *described.warnings])
    signature, heads = described.signature, described.heads

    def answer(rows: Rows) -> Outputs:
        return model.run(rows, heads, signature)

    with report.step("reference"):
        kinds = keras_parity.rows_by_kind(signature, described.rows, model.padding)
        blocks = parity.reference(answer, kinds)
        _require_independent_rows(answer, blocks, signature, "the model")
    with report.step("convert"):
        file.write_bytes(model.to_tflite(heads, signature))
    report.bytes["tflite"] = file.stat().st_size
    with report.step("parity"):
        runtime = TfliteRuntime(file, signature)
        converted = keras_parity.tolerate_rounding(runtime.run, blocks, signature, heads)
        figures = parity.compare(blocks, converted, signature, keras_parity.TOLERANCE)
    report.fields["parity"] = parity.report_entry(figures, keras_parity.TOLERANCE)
    if not figures.within:
        raise Refused(_explain_difference(figures, signature.outputs[0].name == "values"))
    _require_independent_rows(runtime.run, blocks, signature, "the model's LiteRT form")
    report.served = ServedForm(
        signature,
        runtime.run,
        described.rows,
        described.usable,
        lambda: keras_parity.rows_by_kind(signature, described.rows),
    )
    metrics = {}
    if described.truth is not None and described.rows is not None:
        metrics = measure_metrics(signature, answer(described.rows), described.truth, report)
    return BuildResult(
        state="ready",
        report={},
        signature=signature,
        runtime="tflite",
        runtime_reason="converted to LiteRT, where it answers as the Keras model does",
        metrics=metrics,
        servable=SERVABLE,
    )


def _require_independent_rows(
    answer: parity.AnswerRows, blocks: list[parity.ReferenceBlock], signature: Signature, subject: str
) -> None:
    """Raises `Refused`, also when the model answers none of the rows to compare."""
    if not blocks:
        raise Refused("the model answers none of the made-up rows; publish it with an example of its inputs")
    rows = comparison_rows.concatenated([b.rows for b in blocks])
    row_independence.require_independent_rows(answer, rows, signature, subject, keras_parity.TOLERANCE)


def _explain_difference(figures: parity.ParityFigures, may_be_features: bool) -> str:
    if figures.error:
        return f"the model's LiteRT form fails on {figures.error}"
    hint = (
        " (if its numbers are features and not targets, give the task transform)" if may_be_features else ""
    )
    if figures.worst == "padded":
        hint = ", whose steps the model masks; train it without masking, on sequences of one length"
    return (
        "the model's LiteRT form answers differently from Keras: "
        f"{figures.label_mismatches} labels differ and {figures.beyond} numbers are off by up to "
        f"{figures.largest_difference:.2g} in {sum(figures.rows.values())} rows, "
        f"most on {figures.worst} rows{hint}"
    )
