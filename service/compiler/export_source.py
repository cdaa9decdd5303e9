"""What an export is made from: the version's own model, its .tflite form, and the rows to measure both on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from registry.build_records import ExportJob
from registry.errors import Refused
from registry.rows import Array, Outputs, Rows
from registry.signature import Input
from service.compiler import safeload, tflite
from service.compiler.keras import describe_keras, keras_parity
from service.compiler.keras.load import KerasModel
from service.compiler.measure import comparison_rows, parity
from service.compiler.report import Report, read_example
from service.compiler.signature import describe
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.estimator import Estimator
from service.compiler.tflite import export_gate
from service.compiler.tflite.tflite_upload import AsItIs
from service.compiler.trees import flatten
from service.runtime.tflite_runtime import TfliteRuntime


@dataclass(frozen=True)
class Sample:
    """The version's example as rows, without those with gaps that the model does not take."""

    rows: Rows
    truth: pa.Array | None

    def take(self, index: Any) -> Sample:
        return Sample(self.rows.take(index), None if self.truth is None else self.truth.take(pa.array(index)))


@dataclass(frozen=True)
class Source:
    answer: parity.Answer
    convert: Callable[[], bytes]  # the float32 .tflite
    blocks: Callable[[Rows | None], list[parity.Block]]  # from the example's rows
    sample: Sample | None
    exact: bool = False  # a tree ensemble: its labels may not differ
    published: bytes | None = None  # what devices get as it is, if nothing was made smaller
    within: Callable[[int], tflite.Converted] | None = None  # of at most so many bytes, by giving up trees


def sklearn(job: ExportJob, report: Report) -> Source:
    model = safeload.load(job.artifact)
    estimator = Estimator(model, job.signature)

    def blocks(rows: Rows | None) -> list[parity.Block]:
        kinds = comparison_rows.kinds(model, job.signature, rows)
        sent = {kind: export_gate.single(found, job.signature) for kind, found in kinds.items()}
        return parity.reference(estimator.run, sent)

    return Source(
        answer=estimator.run,
        convert=lambda: tflite.convert(model, job.signature),
        blocks=blocks,
        sample=_sample(job),
        exact=flatten.is_forest(last(model)),
        within=lambda most: tflite.within(model, job.signature, most),
    )


def last(model: Any) -> Any:
    """What answers in the end: a pipeline's last step, a search's best estimator."""
    while True:
        if hasattr(model, "steps"):
            model = model.steps[-1][1]
        elif hasattr(model, "best_estimator_"):
            model = model.best_estimator_
        else:
            return model


def keras(job: ExportJob, report: Report) -> Source:
    model = KerasModel(Path(job.artifact), Path(job.out), job.memory_mb)
    heads, _ = describe_keras.describe_heads(model, Corrections(task=job.signature.task))

    def answer(rows: Rows) -> Outputs:
        return model.run(rows, heads, job.signature)

    return Source(
        answer=answer,
        convert=lambda: model.to_tflite(heads, job.signature),
        blocks=lambda rows: parity.reference(answer, keras_parity.kinds(job.signature, rows)),
        sample=_sample(job),
    )


def tflite_as_it_is(job: ExportJob, report: Report) -> Source:
    """The published file is the model itself. What is measured bears our names and metadata, as what is
    made smaller does; devices that want it whole get the published bytes."""
    taken = AsItIs(Path(job.artifact), read_example(job), Corrections(task=job.signature.task))
    file = Path(job.out) / "published.tflite"
    copied = taken.write(file, job.signature)
    runtime = TfliteRuntime(file if copied else Path(job.artifact), job.signature)
    return Source(
        answer=runtime.run,
        convert=(file if copied else Path(job.artifact)).read_bytes,
        blocks=lambda rows: parity.reference(runtime.run, keras_parity.kinds(job.signature, rows)),
        sample=_sample(job),
        published=Path(job.artifact).read_bytes(),
    )


def unknown(job: ExportJob, report: Report) -> Source:
    raise Refused(
        f"a version of format {job.format} has no TFLite form; exports are made of sklearn-joblib, keras and "
        "tflite versions"
    )


SOURCES: dict[str, Callable[[ExportJob, Report], Source]] = {
    "sklearn-joblib": sklearn,
    "keras": keras,
    "tflite": tflite_as_it_is,
}


def of(job: ExportJob, report: Report) -> Source:
    """Raises `Refused` for a format that has no TFLite form, or a model that cannot be loaded."""
    return SOURCES.get(job.format, unknown)(job, report)


def _sample(job: ExportJob) -> Sample | None:
    example = read_example(job)
    if example is None:
        return None
    rows = describe.table(job.signature.inputs, example)
    return Sample(rows, example.target).take(np.flatnonzero(_whole(rows, job.signature.inputs)))


def _whole(rows: Rows, inputs: tuple[Input, ...]) -> Array:
    """bool [n]: no gaps but where the model takes them."""
    columns = rows.columns if rows.columns is not None else rows.matrix.T  # type: ignore[union-attr]
    whole = np.ones(len(rows), dtype=bool)
    for given, column in zip(inputs, columns, strict=True):
        if not given.nullable:
            whole &= np.array([v is not None and v == v for v in column.tolist()])
    return whole
