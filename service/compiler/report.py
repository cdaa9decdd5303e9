"""Parts that builds and exports share: the growing report, the example, accuracy, a rejection."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from registry.build_messages import BuildRequest, BuildResult, ExportRequest
from registry.errors import Refused
from registry.rows import Array, Outputs, Rows
from registry.signature import Signature
from service.compiler import example, lineage
from service.compiler.measure import comparison_rows, metrics
from service.compiler.measure.parity import AnswerRows
from service.runtime.codec.columns import show


@dataclass(frozen=True)
class ServedForm:
    """A built version as it will be served, for the measures that are the same for all formats."""

    signature: Signature
    answer: AnswerRows  # the runtime that serves it
    rows: Rows | None  # the example's, in the signature's order, without those the model does not accept
    usable: Array | None  # which rows of the example `rows` are, bool [n]
    kinds: Callable[[], dict[str, Rows]]  # the rows that parity is measured on


class BuildReport:
    """The report of one build or export: warnings, seconds per step, and further fields."""

    def __init__(self, request: BuildRequest | ExportRequest) -> None:
        self.warnings: list[str] = []
        self.seconds: dict[str, float] = {}
        self.fields: dict[str, Any] = {}
        self.lineage: dict[str, Any] = {"built_by": lineage.builder_versions()}
        self.bytes = {"artifact": Path(request.artifact).stat().st_size}
        self.served: ServedForm | None = None  # set by the builder of each format

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Record the seconds that the block takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - started, 4)

    def to_json(self) -> dict[str, Any]:
        return {**self.fields, "bytes": self.bytes, "seconds": self.seconds, "warnings": self.warnings}


def rejected_build(reason: str) -> BuildResult:
    return BuildResult(state="rejected", report={"reason": reason})


def read_example(request: BuildRequest | ExportRequest) -> example.ExampleTable | None:
    """Raises `Refused` when it cannot be read, or when there is a target but no example."""
    if request.example is None:
        if request.target is not None:
            raise Refused(
                f"the target {show(request.target)} names a column of the example, but there is no example"
            )
        return None
    return example.read(request.example, request.example_media_type, request.target)


def record_upload(
    signature: Signature,
    answer: AnswerRows,
    rows: Rows | None,
    sample: example.ExampleTable | None,
    report: BuildReport,
) -> dict[str, float]:
    """Set `report.served` for a graph that is served as published; return its metrics on the example."""
    usable = np.ones(len(rows), dtype=bool) if rows is not None else None
    report.served = ServedForm(
        signature, answer, rows, usable, lambda: comparison_rows.rows_by_kind(None, signature, rows)
    )
    truth = None if sample is None else sample.true_values(signature.outputs)
    if truth is None or rows is None:
        return {}
    return measure_metrics(signature, answer(rows), truth, report)


def measure_metrics(
    signature: Signature, answered: Outputs, truth: pa.Array, report: BuildReport
) -> dict[str, float]:
    """Accuracy or R2 against the true values; a warning in the report when they are of the wrong type."""
    try:
        return metrics.measure(signature, answered, truth)
    except ValueError as error:
        report.warnings.append(f"no accuracy was measured: {error}")
        return {}
