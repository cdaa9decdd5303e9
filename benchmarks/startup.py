"""Time until `/readyz` returns 200, compared with the time to import fastapi and onnxruntime.

    python -m benchmarks.startup [--rounds 10] [--json]

Both are complete processes, in turns, and the fastest round counts: slower ones measured other load on the
machine. The data directory exists; `first start` creates a new one with migrations and admin key. `first
management call` is the time of a management call that is sent right after readiness, while FastAPI is
imported. Bytecode is compiled before, as `scripts/setup` does.
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
    """Return the wall time and the CPU time in seconds of importing fastapi and onnxruntime."""
    start = time.monotonic()
    process = psutil.Popen([sys.executable, "-c", "import fastapi, onnxruntime"])
    _, status, cpu = _wait(process.pid)
    if status:
        raise RuntimeError(f"exit code {status}")
    return time.monotonic() - start, cpu


def _wait(pid: int) -> tuple[int, int, float]:
    import os

    child, status, usage = os.wait4(pid, 0)
    return child, status, usage.ru_utime + usage.ru_stime


class StartTimes(NamedTuple):
    """Seconds until the server is ready, its CPU time by then, and seconds of the first management call."""

    ready: float
    cpu: float
    call: float


def measure_start(home: Path, log: Path) -> StartTimes:
    with Server(home, log) as server:
        seconds = server.start()
        times = psutil.Process(server.process.pid).cpu_times()
        call_start = time.monotonic()
        server.call_json("GET", "/v1/models")
        return StartTimes(seconds, times.user + times.system, time.monotonic() - call_start)


def measure(rounds: int) -> dict[str, float]:
    for package in ("service", "registry", "migrations"):
        compileall.compile_dir(str(ROOT / package), quiet=1)
    fastest: dict[str, float] = {}

    def note(name: str, seconds: float) -> None:
        fastest[name] = min(fastest.get(name, seconds), seconds)

    with tempfile.TemporaryDirectory() as folder:
        home, log = Path(folder) / "home", Path(folder) / "log"
        measure_start(home, log)
        for number in range(rounds):
            import_time, import_cpu = imports()
            again, first = measure_start(home, log), measure_start(Path(folder) / f"new-{number}", log)
            note("import fastapi, onnxruntime", import_time)
            note("import fastapi, onnxruntime, CPU", import_cpu)
            note("ready", again.ready)
            note("ready, CPU", again.cpu)
            note("ready, first start", first.ready)
            note("first management call", again.call)
    return fastest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    fastest = measure(options.rounds)
    ratio = fastest["ready"] / fastest["import fastapi, onnxruntime"]
    if options.json:
        print(json.dumps({**fastest, "ratio": ratio}))
    else:
        print(describe_machine())
        for name, seconds in fastest.items():
            print(f"{name:<32}{seconds:>7.3f} s")
        print(f"ready / imports: {ratio:.2f} (bound {BOUND})")
    return 0 if ratio <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
