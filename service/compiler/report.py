"""What builds and exports do alike: the report as it grows, reading the example, accuracy, a refusal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from registry.build_records import BuildJob, Built, ExportJob
from registry.errors import Refused
from registry.rows import Outputs
from registry.signature import Signature
from service.compiler import example, lineage
from service.compiler.measure import metrics


class Report:
    """The report as it grows: warnings, seconds of each step, then the figures."""

    def __init__(self, job: BuildJob | ExportJob) -> None:
        self.warnings: list[str] = []
        self.seconds: dict[str, float] = {}
        self.fields: dict[str, Any] = {}
        self.lineage: dict[str, Any] = {"built_by": lineage.builder()}
        self.bytes = {"artifact": Path(job.artifact).stat().st_size}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - started, 4)

    def to_json(self) -> dict[str, Any]:
        return {**self.fields, "bytes": self.bytes, "seconds": self.seconds, "warnings": self.warnings}


def rejected(reason: str) -> Built:
    return Built(state="rejected", report={"reason": reason})


def read_example(job: BuildJob | ExportJob) -> example.Example | None:
    """Raises `Refused` when it is not readable, or a target is named and there is no example."""
    if job.example is None:
        if job.target is not None:
            raise Refused(f"the target {job.target!r} names a column of the example, and there is none")
        return None
    return example.read(job.example, job.example_media_type, job.target)


def measured(signature: Signature, answered: Outputs, truth: Any, report: Report) -> dict[str, float]:
    """Accuracy or R2 against the true values; when they are of the wrong kind, a warning instead."""
    try:
        return metrics.measure(signature, answered, truth)
    except ValueError as error:
        report.warnings.append(f"no accuracy was measured: {error}")
        return {}
