"""The source of an export: the version's own model, its .tflite form, and the rows to compare both on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from registry.build_messages import ExportRequest
from registry.errors import Refused
from registry.rows import Array, Outputs, Rows
from registry.signature import Input
from registry.vocabulary import Format
from service.compiler import safeload
from service.compiler.keras import describe_keras, keras_parity
from service.compiler.keras.load import KerasModel
from service.compiler.measure import comparison_rows, parity
from service.compiler.report import BuildReport, read_example
from service.compiler.signature import composites
from service.compiler.signature.corrections import Corrections, OutputCorrection
from service.compiler.signature.estimator import EstimatorRuntime
from service.compiler.signature.inputs import example_rows
from service.compiler.tflite import conversion, export_gate
from service.compiler.tflite.tflite_upload import TfliteUpload
from service.compiler.trees import flatten
from service.runtime.tflite_runtime import TfliteRuntime


@dataclass(frozen=True)
class LabelledRows:
    """The version's example as rows that the model accepts, and their true values where it has them."""

    rows: Rows
    truth: pa.Array | None

    def take(self, index: Any) -> LabelledRows:
        truth = None if self.truth is None else self.truth.take(pa.array(index))
        return LabelledRows(self.rows.take(index), truth)


@dataclass(frozen=True)
class ExportSource:
    answer: parity.AnswerRows
    convert: Callable[[], bytes]  # the float32 .tflite
    blocks: Callable[[Rows | None], list[parity.ReferenceBlock]]  # to compare on, from the example's rows
    example: LabelledRows | None
    exact: bool = False  # a tree ensemble: its labels must not differ
    tolerate: Callable[[parity.AnswerRows, list[parity.ReferenceBlock]], parity.AnswerRows] | None = None
    """Wraps the export's answers so that differences by rounding alone do not count."""
    published: bytes | None = None  # delivered unchanged if the export does not make the file smaller
    within: Callable[[int], conversion.TfliteConversion] | None = (
        None  # of at most this many bytes, with fewer trees
    )


def load_source(request: ExportRequest, report: BuildReport) -> ExportSource:
    """Raises `Refused` for a format without a TFLite form, and for a model that cannot be loaded."""
    if request.format not in SOURCES:
        raise Refused(
            f"a version of format {request.format} has no TFLite form; exports are made of "
            f"{', '.join(SOURCES)} versions"
        )
    return SOURCES[request.format](request, report)


def sklearn_source(request: ExportRequest, report: BuildReport) -> ExportSource:
    model = safeload.load(request.artifact)
    runtime = EstimatorRuntime(model, request.signature)

    def blocks(rows: Rows | None) -> list[parity.ReferenceBlock]:
        kinds = comparison_rows.rows_by_kind(model, request.signature, rows)
        rounded = {
            kind: export_gate.to_device_rows(exact, request.signature) for kind, exact in kinds.items()
        }
        return parity.reference(runtime.run, rounded)

    _, last = composites.chain(model)
    return ExportSource(
        answer=runtime.run,
        convert=lambda: conversion.convert(model, request.signature),
        blocks=blocks,
        example=_complete_example(request),
        exact=flatten.is_forest(last),
        within=lambda max_bytes: conversion.convert_within(model, request.signature, max_bytes),
    )


def keras_source(request: ExportRequest, report: BuildReport) -> ExportSource:
    model = KerasModel(Path(request.artifact), Path(request.out), request.memory_mb)
    outputs = tuple(OutputCorrection(o.name) for o in request.signature.outputs)
    heads, _ = describe_keras.describe_heads(model, Corrections(request.signature.task, outputs=outputs))

    def answer(rows: Rows) -> Outputs:
        return model.run(rows, heads, request.signature)

    return ExportSource(
        answer=answer,
        convert=lambda: model.to_tflite(heads, request.signature),
        blocks=lambda rows: parity.reference(
            answer, keras_parity.rows_by_kind(request.signature, rows, model.padding)
        ),
        example=_complete_example(request),
        tolerate=lambda export, blocks: keras_parity.tolerate_rounding(
            export, blocks, request.signature, heads
        ),
    )


def tflite_source(request: ExportRequest, report: BuildReport) -> ExportSource:
    """The published file is the model itself.

    A copy with the signature's names and metadata is compared and quantized. Without quantization, devices
    get the published bytes.
    """
    upload = TfliteUpload(
        Path(request.artifact), read_example(request), Corrections(task=request.signature.task)
    )
    copy = Path(request.out) / "published.tflite"
    file = copy if upload.write(copy, request.signature) else Path(request.artifact)
    runtime = TfliteRuntime(file, request.signature)
    return ExportSource(
        answer=runtime.run,
        convert=file.read_bytes,
        blocks=lambda rows: parity.reference(runtime.run, keras_parity.rows_by_kind(request.signature, rows)),
        example=_complete_example(request),
        published=Path(request.artifact).read_bytes(),
    )


SOURCES: dict[Format, Callable[[ExportRequest, BuildReport], ExportSource]] = {
    "sklearn-joblib": sklearn_source,
    "keras": keras_source,
    "tflite": tflite_source,
}


def _complete_example(request: ExportRequest) -> LabelledRows | None:
    """The example without the rows whose missing values the model does not accept."""
    example = read_example(request)
    if example is None:
        return None
    rows = example_rows(request.signature.inputs, example)
    complete = np.flatnonzero(_is_complete(rows, request.signature.inputs))
    return LabelledRows(rows, example.target).take(complete)


def _is_complete(rows: Rows, inputs: tuple[Input, ...]) -> Array:
    """bool [n]: no missing values except in nullable features."""
    columns = rows.columns if rows.columns is not None else rows.matrix.T  # type: ignore[union-attr]
    complete = np.ones(len(rows), dtype=bool)
    for feature, column in zip(inputs, columns, strict=True):
        if not feature.nullable:
            complete &= np.array([v is not None and v == v for v in column.tolist()])
    return complete
