"""kill -9 of the worker during one job: is every row scored once, in order, and without long pauses?

    python -m benchmarks.batch_kill [--rows 10000000] [--kills 20] [--seed 1]
                                    [--databases sqlite postgresql] [--json]

`tests/harness/worker_kills.py` kills and audits; this program prints the figures. Exit code 1 when the audit
reports a fault.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.harness.job_site import JobSite, database_settings
from tests.harness.machine import describe_machine
from tests.harness.worker_kills import kill_workers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--databases", nargs="+", choices=["sqlite", "postgresql"], default=["sqlite", "postgresql"]
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = {}
    for name in options.databases:
        with (
            tempfile.TemporaryDirectory() as folder,
            database_settings(name) as settings,
            JobSite(Path(folder), options.rows, **settings).running() as site,
        ):
            figures[name] = asdict(kill_workers(site, options.kills, options.seed))
    if options.json:
        print(json.dumps(figures))
    else:
        print(describe_machine(), *(f"{name}: {report}" for name, report in figures.items()), sep="\n")
    return 1 if any(report["faults"] for report in figures.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
