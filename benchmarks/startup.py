"""How long until `/readyz` is 200, beside the time to import fastapi and onnxruntime.

    python -m benchmarks.startup [--rounds 10] [--json]

Both are whole processes, by turns, and the best of all rounds counts: the others measured the neighbours.
The data directory exists; `first start` makes a new one, migrations and admin key included. `first management
call` is what a management call takes that is sent right after readiness: FastAPI is imported meanwhile.
Bytecode is compiled before, as `scripts/setup` does.
"""

from __future__ import annotations

import argparse
import compileall
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.harness.machine import describe_machine
from tests.harness.server import Server

BOUND = 1.5
ROOT = Path(__file__).parents[1]


def imports() -> tuple[float, float]:
    """Seconds of wall and of CPU time that importing fastapi and onnxruntime takes."""
    start = time.monotonic()
    process = psutil.Popen([sys.executable, "-c", "import fastapi, onnxruntime"])
    _, status, used = _wait(process.pid)
    if status:
        raise RuntimeError(f"exit code {status}")
    return time.monotonic() - start, used


def _wait(pid: int) -> tuple[int, int, float]:
    import os

    waited, status, usage = os.wait4(pid, 0)
    return waited, status, usage.ru_utime + usage.ru_stime


class Start(NamedTuple):
    """Seconds until the server is ready, of its own CPU time by then, and of the first management call."""

    ready: float
    cpu: float
    call: float


def started(home: Path, log: Path) -> Start:
    with Server(home, log) as server:
        seconds = server.start()
        times = psutil.Process(server.process.pid).cpu_times()
        asked = time.monotonic()
        server.call_json("GET", "/v1/models")
        return Start(seconds, times.user + times.system, time.monotonic() - asked)


def measure(rounds: int) -> dict[str, float]:
    for room in ("service", "registry", "migrations"):
        compileall.compile_dir(str(ROOT / room), quiet=1)
    best: dict[str, float] = {}

    def note(what: str, seconds: float) -> None:
        best[what] = min(best.get(what, seconds), seconds)

    with tempfile.TemporaryDirectory() as folder:
        home, log = Path(folder) / "home", Path(folder) / "log"
        started(home, log)
        for number in range(rounds):
            bare, used = imports()
            again, first = started(home, log), started(Path(folder) / f"new-{number}", log)
            note("import fastapi, onnxruntime", bare)
            note("import fastapi, onnxruntime, CPU", used)
            note("ready", again.ready)
            note("ready, CPU", again.cpu)
            note("ready, first start", first.ready)
            note("first management call", again.call)
    return best


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--rounds", type=int, default=10)
    asked.add_argument("--json", action="store_true")
    given = asked.parse_args()
    best = measure(given.rounds)
    ratio = best["ready"] / best["import fastapi, onnxruntime"]
    if given.json:
        print(json.dumps({**best, "ratio": ratio}))
    else:
        print(describe_machine())
        for name, seconds in best.items():
            print(f"{name:<32}{seconds:>7.3f} s")
        print(f"ready / imports: {ratio:.2f} (bound {BOUND})")
    return 0 if ratio <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
