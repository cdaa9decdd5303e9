"""Faults during a job other than a killed worker: is its state clear, and is every row scored once?

    python -m benchmarks.batch_trouble [--rows 4000000] [--only NAME ...] [--json]

Each fault gets its own server, on SQLite unless its name says otherwise. `tests/harness/job_faults.py` causes
the faults and audits the job. Exit code 1 when an audit reports something wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.harness import job_faults
from tests.harness.job_faults import Faults
from tests.harness.job_site import JobSite, database_settings
from tests.harness.machine import describe_machine


class Scenario(NamedTuple):
    cause: Callable[[JobSite], Faults]
    worker: bool = False
    """With the worker that the server runs as its child."""
    database: str = "sqlite"


SCENARIOS = {
    "two workers": Scenario(job_faults.two_workers, database="postgresql"),
    "worker wakes after the end": Scenario(job_faults.worker_wakes_after_end),
    "worker wakes after the end, PostgreSQL": Scenario(
        job_faults.worker_wakes_after_end, database="postgresql"
    ),
    "worker wakes during the job": Scenario(job_faults.worker_wakes_during_job),
    "server killed": Scenario(job_faults.server_killed, worker=True),
    "server stopped": Scenario(job_faults.server_stopped, worker=True),
    "disk full": Scenario(job_faults.disk_full),
    "version archived": Scenario(job_faults.version_archived),
    "alias moved": Scenario(job_faults.alias_moved),
    "input changed": Scenario(job_faults.input_changed),
    "part deleted": Scenario(job_faults.part_deleted),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: dict[str, Faults] = {}
    for name in options.only:
        if name == "disk full" and os.geteuid() != 0:
            print("disk full: skipped, mounting a small disk needs root", file=sys.stderr)
            continue
        scenario = SCENARIOS[name]
        with tempfile.TemporaryDirectory() as folder, database_settings(scenario.database) as settings:
            site = JobSite(Path(folder), options.rows, files=40, worker=scenario.worker, **settings)
            with site.running():
                start = time.monotonic()
                results[name] = scenario.cause(site)
        if not options.json:
            print(f"{name}: {results[name] or 'no fault'} ({time.monotonic() - start:.0f} s)", flush=True)
    print(json.dumps(results) if options.json else describe_machine())
    return 1 if any(results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
