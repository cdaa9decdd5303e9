"""Trying a model's candidate graphs until one answers as the estimator does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from registry.errors import Refused, Unavailable
from registry.rows import Outputs, Rows
from registry.signature import Signature
from service.compiler.measure import parity
from service.compiler.onnx import convert, gate


class Runtime(Protocol):
    def run(self, rows: Rows) -> Outputs: ...


Load = Callable[[Path, Signature], Runtime]


@dataclass
class Trial:
    """What came of one candidate. `file` is its graph when it is within the bounds."""

    candidate: convert.Candidate
    figures: parity.Figures | None = None
    error: str | None = None
    bytes: int = 0
    convert_s: float = 0.0
    parity_s: float = 0.0
    file: Path | None = None

    def to_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = {
            "input_dtype": self.candidate.floats,
            "form": self.candidate.title,
            "outcome": "within bounds" if self.file else "failed" if self.error else "drifts",
            "bytes": self.bytes,
            "convert_s": round(self.convert_s, 4),
            "parity_s": round(self.parity_s, 4),
        }
        if self.error:
            plain["error"] = self.error
        if self.figures:
            plain.update(msgspec.to_builtins(self.figures))
        return plain


@dataclass
class Verdict:
    """The candidate to serve, or in one sentence why there is none."""

    chosen: Trial | None
    reason: str
    trials: list[Trial] = field(default_factory=list)


def run(
    model: Any, signature: Signature, reference: Callable[[], list[parity.Block]], out: Path, load: Load
) -> Verdict:
    """Tries the likelier candidates first and stops at the first within the bounds.

    `reference` gives what to measure against, and is only asked if there is something to measure. `load`
    makes the serving runtime itself of a graph: what is measured is what will answer.
    """
    try:
        candidates = convert.candidates(model, signature)
    except Refused as error:
        return Verdict(None, str(error))
    blocks = reference()
    trials: list[Trial] = []
    for number, candidate in enumerate(candidates):
        trial = _try(model, signature, blocks, candidate, out / f"candidate-{number}.onnx", load)
        trials.append(trial)
        if trial.file is not None:
            return Verdict(trial, f"answers as scikit-learn does, fed as {candidate.title}", trials)
    return Verdict(None, _why_not(trials), trials)


def _try(
    model: Any,
    signature: Signature,
    blocks: list[parity.Block],
    candidate: convert.Candidate,
    path: Path,
    load: Load,
) -> Trial:
    trial = Trial(candidate)
    started = time.perf_counter()
    try:
        graph = convert.convert(model, signature, candidate)
        gate.check(graph)
        trial.bytes = convert.save(graph, path)
        runtime = load(path, signature)
    except (Refused, Unavailable) as error:
        trial.error = str(error)
    except MemoryError:
        trial.error = "converting it needs more memory than a build may use"
    except Exception as error:  # converters raise anything for what they cannot do
        trial.error = _sentence(error)
    trial.convert_s = time.perf_counter() - started
    if trial.error is None:
        started = time.perf_counter()
        trial.figures = parity.compare(blocks, runtime.run, signature)
        trial.parity_s = time.perf_counter() - started
        if trial.figures.within:
            trial.file = path
            return trial
    path.unlink(missing_ok=True)
    return trial


def _sentence(error: Exception) -> str:
    """The first line of a converter's error, cut to a readable length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _why_not(trials: list[Trial]) -> str:
    measured = [t.figures for t in trials if t.figures is not None]
    if not measured:
        return f"it does not convert to ONNX ({trials[0].error})"
    figures = min(measured, key=lambda f: (f.error is not None, f.label_mismatches, f.beyond))
    if figures.error:
        return f"its ONNX form fails on {figures.error}"
    faults = []
    if figures.label_mismatches:
        faults.append(f"{figures.label_mismatches} labels differ")
    if figures.beyond:
        faults.append(f"{figures.beyond} numbers are off by up to {figures.largest_difference:.2g}")
    rows = sum(figures.rows.values())
    return f"its ONNX form drifts: {' and '.join(faults)} in {rows} rows, most on {figures.worst} rows"
