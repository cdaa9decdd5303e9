"""Single rows over HTTP: this server, the bare limit and other servers of models, on one core each.

    python -m benchmarks.online [--quick] [--models NAME ...] [--servers NAME ...] [--concurrency N ...]
                                [--seconds N] [--rounds N] [--resume] [--json] [--write] [--render]

For each model, all servers are started, their answers are compared with scikit-learn's, and then each is
measured in turn, `--rounds` times; the figures are medians over the rounds. A server whose turn it is not is
stopped (SIGSTOP), so that it takes no time from the others. `wrk` sends 64 rows in turn, one in each request.
The server has one core, wrk another.

Without `--models`, `--servers` and `--concurrency`, all servers are measured at 1, 32 and 256 connections
on the forest for the breast-cancer data (those whose batching is off not at 256), and at 32 connections,
with batching where they have it and for half as long, on the other models. A server that cannot be
installed or started, or that answers wrongly, is named with the reason, and the run goes on. Every
measurement is saved at once in tmp/online/; `--resume` continues an interrupted run. `--write` writes
docs/performance/online.json, the figure and the section of docs/performance.md.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.serving import machine, plot, report, wrk
from benchmarks.serving.environments import ROOT, InstallationFailed
from benchmarks.serving.machine import Cores
from benchmarks.serving.models import HEADLINE, MODELS
from benchmarks.serving.results import Counters, Described, Failure, Measurement, ResultsFile, summarize
from benchmarks.serving.servers import SPECS, Running, ServerFailed, ServerSet, ServerSpec

RESULTS = ROOT / "tmp" / "online"
CONCURRENCY = [1, 32, 256]
CODE = ["service", "registry", "benchmarks/online.py", "benchmarks/serving", "benchmarks/peers"]
"""What must not change between a run and its resumption."""
QUICK = ["bare", "granian-rsgi", "granian-asgi", "trivium"]
OTHER_MODELS = ["bare", "trivium", "flask", "fastapi", "mlserver-batching", "bentoml-batching"]
OTHER_MODELS += ["litserve-batching", "mlflow"]
LONGEST_S = 8
"""How long a slow server is measured at most, so that each connection gets two answers."""
IDLE_S, DRAIN_S = 0.2, 60.0
"""After a load, the benchmark waits until a server was idle for `IDLE_S`, at most `DRAIN_S`."""
WRITTEN_S = 8.0
"""After this time without work, a server has written what it recorded."""
EXPECTED = (
    ServerFailed,
    InstallationFailed,
    wrk.WrkFailed,
    OSError,
    RuntimeError,
    subprocess.SubprocessError,
)
"""What may go wrong with one server without ending the run."""


@dataclass(frozen=True)
class Cell:
    """One server at one number of connections, for one model."""

    model: str
    spec: ServerSpec
    concurrency: int
    seconds: int


@dataclass
class Run:
    """What all measurements share. `per_s` holds the last rate of each cell, to choose a duration."""

    file: ResultsFile
    cores: Cores
    rounds: int
    per_s: dict[Cell, float]


def plan(options: argparse.Namespace) -> list[Cell]:
    """Return what to measure, models and servers in the order of their tables."""
    chosen = options.models or options.servers or options.concurrency
    models = options.models or (list(MODELS) if not options.quick else [HEADLINE])
    cells = []
    for model in models:
        reduced = not chosen and not options.quick and model != HEADLINE
        names = options.servers or (QUICK if options.quick else OTHER_MODELS if reduced else list(SPECS))
        concurrency = options.concurrency or ([32] if reduced else [1, 32] if options.quick else CONCURRENCY)
        seconds = max(options.seconds // 2, 1) if reduced else options.seconds
        cells += [
            Cell(model, SPECS[name], n, seconds) for name in SPECS if name in names for n in concurrency
        ]
    if chosen:
        return cells
    return [cell for cell in cells if cell.concurrency < 256 or cell.spec.batching is not False]


def measure_model(run: Run, name: str, cells: list[Cell]) -> None:
    """Measure all cells of one model. Problems become failures in the results."""
    missing = [c for c in cells if any(_is_missing(run, c, round_) for round_ in range(run.rounds))]
    if not missing:
        return
    _log(f"{name}: train and publish")
    try:
        with tempfile.TemporaryDirectory(prefix="online-") as folder:
            model = MODELS[name]()
            with ServerSet(model, Path(folder), run.cores.server) as running:
                _describe(run, running, running.version["runtime"])
                failed = _start_all(run, running, missing)
                for round_ in range(run.rounds):
                    _measure_round(run, running, missing, failed, round_)
                _read_counters(run, running, missing, failed)
                running.own.tree.resume()
                _describe(run, running, running.own.answering_runtime())
    except EXPECTED as error:
        _fail(run, name, "trivium", error)


def _describe(run: Run, running: ServerSet, runtime: str) -> None:
    model, body = running.model, running.own.request.bodies[0]
    run.file.add(Described(model.name, model.title, runtime, len(body), len(running.answer)))


def _is_missing(run: Run, cell: Cell, round_: int) -> bool:
    return not run.file.results.has(cell.model, cell.spec.name, cell.concurrency, round_)


def _start_all(run: Run, running: ServerSet, cells: list[Cell]) -> set[str]:
    """Start the servers of these cells; return the names of those that failed."""
    failed = set()
    for spec in dict.fromkeys(cell.spec for cell in cells):
        if spec.numbers_only and running.model.columns is not None:
            continue
        started = time.monotonic()
        try:
            running.get(spec).tree.suspend()
            _log(f"{running.model.name}: {spec.name} answers correctly ({time.monotonic() - started:.0f} s)")
        except EXPECTED as error:
            failed.add(spec.name)
            _fail(run, running.model.name, spec.name, error)
    return failed


def _measure_round(run: Run, running: ServerSet, cells: list[Cell], failed: set[str], round_: int) -> None:
    for cell in cells:
        skipped = cell.spec.numbers_only and running.model.columns is not None
        if cell.spec.name in failed or skipped or not _is_missing(run, cell, round_):
            continue
        try:
            measurement = measure(run, running.get(cell.spec), running.folder, cell, round_)
        except EXPECTED as error:
            failed.add(cell.spec.name)
            _fail(run, cell.model, cell.spec.name, error)
            running.drop(cell.spec)
            continue
        run.file.add(measurement)
        _log(
            f"{cell.model} {round_ + 1}/{run.rounds} {cell.spec.name} x{cell.concurrency}: "
            f"{measurement.per_s:,.0f}/s, p50 {measurement.p50_ms:.2f} ms, p99 {measurement.p99_ms:.2f} ms, "
            f"CPU {measurement.cpu_us:,.0f} us"
        )


def _read_counters(run: Run, running: ServerSet, cells: list[Cell], failed: set[str]) -> None:
    for spec in dict.fromkeys(cell.spec for cell in cells):
        if not spec.counters or spec.name in failed:
            continue
        try:
            server = running.get(spec)
            server.tree.resume()
            server.tree.await_idle(WRITTEN_S, 60)
            run.file.add(Counters(running.model.name, spec.name, server.read_counters()))
        except EXPECTED as error:
            _fail(run, running.model.name, spec.name, error)


def measure(run: Run, server: Running, folder: Path, cell: Cell, round_: int) -> Measurement:
    """Load one server. Raises `ServerFailed` when an answer was not 2xx or 3xx."""
    script = folder / f"{cell.spec.name}.lua"
    if not script.exists():
        script.write_text(wrk.script(server.request))
    server.tree.resume()
    try:
        if cell not in run.per_s:
            warm_up = wrk.run(server.port, script, cell.concurrency, 1, run.cores.load)
            run.per_s[cell] = warm_up.per_s
            server.tree.await_idle(IDLE_S, DRAIN_S)
        seconds = _duration(run.per_s[cell], cell.concurrency, cell.seconds)
        cpu_before = server.tree.cpu_seconds()
        load = wrk.run(server.port, script, cell.concurrency, seconds, run.cores.load)
        cpu_s = server.tree.cpu_seconds() - cpu_before
        memory = server.tree.memory()
        server.tree.await_idle(IDLE_S, DRAIN_S)
    finally:
        server.tree.suspend()
    if load.failures or not load.requests:
        raise ServerFailed(f"{load.failures} of {load.requests} answers under load failed")
    run.per_s[cell] = load.per_s
    return Measurement(
        cell.model,
        cell.spec.name,
        cell.concurrency,
        round_,
        load.requests,
        load.failures,
        load.per_s,
        load.p50_ms,
        load.p99_ms,
        cpu_s / load.requests * 1e6,
        memory.uss_mb,
        memory.rss_mb,
        memory.processes,
    )


def _duration(per_s: float, concurrency: int, seconds: int) -> int:
    """Return the seconds in which each connection gets two answers, within bounds."""
    needed = math.ceil(2 * concurrency / per_s) if per_s else LONGEST_S
    return max(seconds, min(needed, LONGEST_S))


def _fail(run: Run, model: str, server: str, error: Exception) -> None:
    words = " ".join(str(error).split()) or type(error).__name__
    reason = words if len(words) <= 300 else f"{words[:120]} ... {words[-170:]}"
    run.file.add(Failure(model, server, reason))
    _log(f"{model}: {server} FAILED: {reason}")


def _log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True).stdout.strip()


def conditions(options: argparse.Namespace, cores: Cores) -> dict[str, Any]:
    revision = _git("rev-parse", "--short=10", "HEAD") or "unknown"
    if _git("status", "--porcelain", "--", *CODE):
        revision += " with changes"
    trees = _git("rev-parse", *(f"HEAD:{name}" for name in CODE))
    return {
        "run": {
            "seconds": options.seconds,
            "rounds": options.rounds,
            "code": [t[:10] for t in trees.split()],
        },
        "revision": revision,
        "date": date.today().isoformat(),
        "machine": machine.describe(cores).record(),
        "wrk": wrk.version(),
        "servers": [
            {
                "name": spec.name,
                "title": spec.title,
                "role": spec.role,
                "package": spec.package,
                "version": spec.version(),
                "batching": spec.batching,
            }
            for spec in SPECS.values()
        ],
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the limits and this server, one model")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--servers", nargs="+", choices=list(SPECS), metavar="NAME", help=", ".join(SPECS))
    parser.add_argument("--concurrency", nargs="+", type=int, metavar="N", help="connections")
    parser.add_argument("--seconds", type=int, default=2, help="of one measurement (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--resume", action="store_true", help="continue the last run")
    parser.add_argument("--json", action="store_true", help="print the medians as JSON")
    parser.add_argument(
        "--write", action="store_true", help="write the page, the figure and the JSON in docs/"
    )
    parser.add_argument("--render", action="store_true", help="write page and figure from the JSON in docs/")
    options = parser.parse_args(arguments)
    if options.seconds < 1 or options.rounds < 1 or any(n < 1 for n in options.concurrency or ()):
        parser.error("--seconds, --rounds and --concurrency are at least 1")
    if options.write and (options.quick or options.models or options.servers or options.concurrency):
        parser.error("--write takes a run of all models and servers")
    return options


def write_docs(summary: dict[str, Any]) -> None:
    report.JSON.parent.mkdir(exist_ok=True)
    report.JSON.write_text(report.dump(summary))
    report.PAGE.write_text(report.insert(report.PAGE.read_text(), report.section(summary)))
    for theme in plot.THEMES:
        plot.path(theme).write_text(plot.draw(summary, theme))


def main() -> None:
    options = parse()
    if options.render:
        write_docs(json.loads(report.JSON.read_text()))
        return
    wrk.require()
    RESULTS.mkdir(parents=True, exist_ok=True)
    lock = (RESULTS / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit("online: another run is in progress; two at once disturb each other") from None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended
    cells = plan(options)
    cores = machine.choose_cores()
    if os.getloadavg()[0] > machine.BUSY:
        _log(f"load {os.getloadavg()[0]:.1f}: other work disturbs the figures")
    path = RESULTS / ("quick.jsonl" if options.quick else "full.jsonl")
    run = Run(
        ResultsFile(path, conditions(options, cores), options.resume),
        cores,
        options.rounds,
        {},
    )
    for model in dict.fromkeys(cell.model for cell in cells):
        measure_model(run, model, [cell for cell in cells if cell.model == model])
    summary = summarize(run.file.results)
    if options.write:
        if HEADLINE not in run.file.results.models:
            raise SystemExit(f"online: {HEADLINE} was not measured, so nothing was written; try --resume")
        write_docs(summary)
    print(report.dump(summary) if options.json else report.terminal(summary))
    sys.exit(1 if any(f.server in ("trivium", "bare") for f in run.file.results.failures) else 0)


if __name__ == "__main__":
    main()
