"""Measurements in a file of JSON lines, which a later run resumes, and their medians.

The first line has the conditions of the run: only a run under the same conditions may resume it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FIGURES = ("per_s", "p50_ms", "p99_ms", "cpu_us", "uss_mb", "rss_mb")


@dataclass(frozen=True)
class Measurement:
    """One round: a server under load. `failures` must be 0 for a valid figure."""

    model: str
    server: str
    concurrency: int
    round: int
    requests: int
    failures: int
    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    uss_mb: float
    rss_mb: float
    processes: int


@dataclass(frozen=True)
class Failure:
    """A server that could not be installed, started or measured, or answered wrongly."""

    model: str
    server: str
    reason: str


@dataclass(frozen=True)
class Described:
    """What the build made of a model, and the sizes of a request and an answer in bytes."""

    model: str
    title: str
    runtime: str
    request_bytes: int
    answer_bytes: int


@dataclass(frozen=True)
class Counters:
    """The metrics of a variant of this server after its measurements."""

    model: str
    server: str
    sums: dict[str, int]


Line = Measurement | Failure | Described | Counters
KINDS: dict[str, type[Line]] = {
    "measurement": Measurement,
    "failure": Failure,
    "model": Described,
    "counters": Counters,
}


@dataclass
class Results:
    """All lines of a run. `conditions` are the settings and the machine, as the first line has them."""

    conditions: dict[str, Any]
    measurements: list[Measurement] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    models: dict[str, Described] = field(default_factory=dict)
    counters: list[Counters] = field(default_factory=list)

    def add(self, line: Line) -> None:
        if isinstance(line, Measurement):
            self.measurements.append(line)
        elif isinstance(line, Failure):
            self.failures.append(line)
        elif isinstance(line, Counters):
            self.counters.append(line)
        else:
            self.models[line.model] = line

    def has(self, model: str, server: str, concurrency: int, round_: int) -> bool:
        wanted = (model, server, concurrency, round_)
        return any((m.model, m.server, m.concurrency, m.round) == wanted for m in self.measurements)


class ResultsFile:
    """Appends each line at once, so that an interrupted run loses one measurement at most."""

    def __init__(self, path: Path, conditions: dict[str, Any], resume: bool) -> None:
        """Raises `SystemExit` when the file to resume is from a run under other conditions."""
        self.path = path
        self.results = Results(conditions)
        if resume and path.exists():
            self.results = read(path)
            _require_same(self.results.conditions["run"], conditions["run"], path)
            self.results.failures.clear()  # these servers are tried again
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.results.conditions) + "\n")
        r = self.results
        lines: list[Line] = [*r.models.values(), *r.measurements, *r.counters]
        for line in lines:
            self._append(line)

    def add(self, line: Line) -> None:
        self.results.add(line)
        self._append(line)

    def _append(self, line: Line) -> None:
        kind = next(name for name, of in KINDS.items() if isinstance(line, of))
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, **asdict(line)}) + "\n")


def _require_same(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        details = "; ".join(f"{name} was {before.get(name)}, now {now[name]}" for name in changed)
        raise SystemExit(f"online: {path} cannot be resumed: {details}. Run without --resume to start again.")


def read(path: Path) -> Results:
    """Read the lines of a run; an incomplete last line, of a run that was killed, is left out."""
    first, *lines = path.read_text().splitlines()
    results = Results(json.loads(first))
    for number, text in enumerate(lines):
        try:
            record = json.loads(text)
        except ValueError:
            if number == len(lines) - 1:
                break
            raise
        results.add(KINDS[record.pop("kind")](**record))
    return results


def summarize(results: Results) -> dict[str, Any]:
    """Return the conditions, the models, the medians over the rounds, and the failures, as plain records."""
    cells = [
        {
            "model": model,
            "server": server,
            "concurrency": concurrency,
            "rounds": len(rounds),
            "requests": sum(m.requests for m in rounds),
            "failures": sum(m.failures for m in rounds),
            "processes": max(m.processes for m in rounds),
            **{name: _rounded(statistics.median(getattr(m, name) for m in rounds)) for name in FIGURES},
            "per_s_range": [_rounded(f(m.per_s for m in rounds)) for f in (min, max)],
        }
        for (model, server, concurrency), rounds in _cells(results.measurements)
    ]
    return {
        **results.conditions,
        "models": [asdict(model) for model in results.models.values()],
        "cells": cells,
        "counters": [asdict(counters) for counters in results.counters],
        "failures": [asdict(failure) for failure in results.failures],
    }


def _cells(
    measurements: Iterable[Measurement],
) -> Iterator[tuple[tuple[str, str, int], list[Measurement]]]:
    groups: dict[tuple[str, str, int], list[Measurement]] = {}
    for m in measurements:
        groups.setdefault((m.model, m.server, m.concurrency), []).append(m)
    yield from groups.items()


def _rounded(value: float) -> float:
    """Four significant digits: more are noise."""
    return float(f"{value:.4g}")
