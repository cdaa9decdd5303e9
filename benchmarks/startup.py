"""How long until `/readyz` is 200, beside the time to import fastapi and onnxruntime.

    python -m benchmarks.startup [--rounds 10] [--json]

Both are whole processes, by turns, and the best of all rounds counts: the others measured the neighbours.
The data directory exists; `first start` makes a new one, migrations and admin key included. Bytecode is
compiled before, as `scripts/setup` does.
"""

from __future__ import annotations

import argparse
import compileall
import json
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks._support import Server, machine

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


def readiness(home: Path, log: Path) -> tuple[float, float]:
    """Seconds of wall time until the server is ready, and of its own CPU time at that moment."""
    with Server(home, log) as server:
        seconds = server.start()
        assert server.process is not None
        times = psutil.Process(server.process.pid).cpu_times()
        return seconds, times.user + times.system


def measure(rounds: int) -> dict[str, float]:
    for room in ("service", "registry", "migrations"):
        compileall.compile_dir(str(ROOT / room), quiet=1)
    best: dict[str, float] = {}

    def note(name: str, measured: tuple[float, float]) -> None:
        for what, seconds in zip((name, f"{name}, CPU"), measured, strict=True):
            best[what] = min(best.get(what, seconds), seconds)

    with tempfile.TemporaryDirectory() as folder:
        home, log = Path(folder) / "home", Path(folder) / "log"
        readiness(home, log)
        for number in range(rounds):
            note("import fastapi, onnxruntime", imports())
            note("ready", readiness(home, log))
            note("ready, first start", readiness(Path(folder) / f"new-{number}", log))
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
        print(machine())
        for name, seconds in best.items():
            print(f"{name:<32}{seconds:>7.3f} s")
        print(f"ready / imports: {ratio:.2f} (bound {BOUND})")
    return 0 if ratio <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
