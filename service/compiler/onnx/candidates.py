"""Try a model's candidate graphs until one gives the estimator's own answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from registry.errors import Refused, Unavailable, summarize_error
from registry.rows import Outputs, Rows
from registry.signature import Signature
from service.compiler.measure import parity
from service.compiler.measure.comparison_rows import refuses_beyond_float32
from service.compiler.onnx import convert, gate
from service.runtime.graph_conventions import FLOAT32_RANGE


class ServingRuntime(Protocol):
    def run(self, rows: Rows) -> Outputs: ...


LoadRuntime = Callable[[Path, Signature], ServingRuntime]


@dataclass
class CandidateTrial:
    """The result of one candidate. `file` is its graph when its answers are within the bounds."""

    candidate: convert.Candidate
    figures: parity.ParityFigures | None = None
    error: str | None = None
    bytes: int = 0
    convert_s: float = 0.0
    parity_s: float = 0.0
    file: Path | None = None

    def to_json(self) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "input_dtype": self.candidate.floats,
            "form": self.candidate.title,
            "outcome": "within bounds" if self.file else "failed" if self.error else "drifts",
            "bytes": self.bytes,
            "convert_s": round(self.convert_s, 4),
            "parity_s": round(self.parity_s, 4),
        }
        if self.error:
            entry["error"] = self.error
        if self.figures:
            entry.update(msgspec.to_builtins(self.figures))
        return entry


@dataclass
class CandidateChoice:
    """The candidate to serve and the reason in one sentence, or the reason why none is served."""

    chosen: CandidateTrial | None
    reason: str
    trials: list[CandidateTrial] = field(default_factory=list)


def choose(
    model: Any,
    signature: Signature,
    answer: parity.AnswerRows,
    reference: Callable[[], list[parity.ReferenceBlock]],
    out: Path,
    load: LoadRuntime,
) -> CandidateChoice:
    """Try the candidates in order and stop at the first one within the bounds.

    `answer` is the estimator; `reference` is called only when there is a candidate to compare. `load` loads a
    graph into the runtime that serves it, so that the served code itself is measured. Never raises because of
    the model: it answers already, and an estimator that another version of scikit-learn fitted may lack any
    attribute.
    """
    trials: list[CandidateTrial] = []
    try:
        candidates = convert.candidates(model, signature)
        blocks = reference()
    except Refused as error:
        return CandidateChoice(None, str(error))
    except MemoryError:
        raise
    except Exception as error:
        return CandidateChoice(None, f"it cannot be compared with an ONNX form ({summarize_error(error)})")
    if not blocks:
        return CandidateChoice(None, "it answers none of the rows on which an ONNX form would be compared")
    float32_only = refuses_beyond_float32(answer, blocks[0].rows, signature.inputs)
    for number, candidate in enumerate(candidates):
        path = out / f"candidate-{number}.onnx"
        trial = _try(model, signature, blocks, candidate, path, load, float32_only)
        trials.append(trial)
        if trial.file is not None:
            return CandidateChoice(trial, f"answers as scikit-learn does, fed as {candidate.title}", trials)
    return CandidateChoice(None, _explain_failure(trials), trials)


def _try(
    model: Any,
    signature: Signature,
    blocks: list[parity.ReferenceBlock],
    candidate: convert.Candidate,
    path: Path,
    load: LoadRuntime,
    float32_only: bool,
) -> CandidateTrial:
    trial = CandidateTrial(candidate)
    started = time.perf_counter()
    try:
        graph = convert.convert(model, signature, candidate)
        if float32_only:
            graph.metadata_props.add(key=FLOAT32_RANGE, value="1")
        gate.check(graph)
        trial.bytes = convert.save(graph, path)
        runtime = load(path, signature)
    except (Refused, Unavailable) as error:
        trial.error = str(error)
    except MemoryError:
        trial.error = "converting it needs more memory than a build may use"
    except Exception as error:  # converters raise anything for what they do not support
        trial.error = summarize_error(error, max_characters=200)
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


def _explain_failure(trials: list[CandidateTrial]) -> str:
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
