"""kill -9 of the server while clients publish: is every acknowledged version still there?

    python -m benchmarks.kill [--rounds 30] [--publishers 3] [--seed 1] [--json]

`tests/harness/server_kills.py` kills, restarts and audits; this program prints the figures. Exit code 1 when
the audit reports a fault.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.harness.machine import describe_machine
from tests.harness.server import Server
from tests.harness.server_kills import kill_server


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--publishers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        with Server(home, Path(folder) / "log", build_concurrency=2) as server:
            report = kill_server(server, options.rounds, options.publishers, options.seed)
    figures = {
        "kills": len(report.starts_s),
        "killed while building": report.killed_while_building,
        "uploads acknowledged": report.uploads,
        "versions acknowledged": len(report.acknowledged),
        "calls repeated": report.retries,
        "states": dict(report.states),
        "reasons of rejection": dict(Counter(report.rejected)),
        "slowest restart, s": round(max(report.starts_s), 2),
        "all built after the last restart, s": round(report.resumed_s, 1),
        "faults": report.faults,
    }
    if options.json:
        print(json.dumps(figures))
    else:
        print(describe_machine(), *(f"{name}: {value}" for name, value in figures.items()), sep="\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
