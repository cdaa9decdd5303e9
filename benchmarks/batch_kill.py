"""kill -9 of the worker, again and again in one job: is every row scored once, in order, and soon?

    python -m benchmarks.batch_kill [--rows 10000000] [--kills 20] [--seed 1]
                                    [--databases sqlite postgresql] [--json]

The worker that the server keeps is killed at random moments, evenly spread over the job's rows. At the end
every row of the input has to be once in the output or in the errors file, in the input's order, with its own
answer, and each partition once in the manifest. A kill may cost what was in flight, which is a partition for
each lane, and has to be made good within 10 s: that is the time until a partition has rows again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._jobs import OPEN, Site, database, seen, twice
from benchmarks._support import machine

AGAIN_S = 10.0


@dataclass
class Killed:
    """What the kills did to one job."""

    kills: int = 0
    seconds: float = 0.0  # from POST to the end
    again_s: list[float] = field(default_factory=list)  # from each kill until rows were done again
    partitions: int = 0
    computed_twice: int = 0
    most_attempts: int = 0  # at one partition
    faults: list[str] = field(default_factory=list)


def kill_workers(site: Site, kills: int, seed: int = 1) -> Killed:
    """One job, so many kills."""
    found, chance = Killed(), random.Random(seed)
    moments = sorted(chance.uniform(0.02, 0.98) for _ in range(kills))
    site.until_worker()
    started = time.monotonic()
    job_id = site.start()
    for share in moments:
        site.until(job_id, lambda job, s=share: seen(job) >= s * site.rows or job["state"] not in OPEN)
        if site.job(job_id)["state"] not in OPEN:
            found.faults.append(f"the job was over before kill {found.kills + 1}")
            break
        site.kill_worker()
        found.kills += 1
        found.again_s.append(_again_s(site, job_id, time.monotonic()))
    job = site.ended(job_id)
    found.seconds = time.monotonic() - started
    found.partitions, found.computed_twice = len(job["partitions"]), twice(job)
    found.most_attempts = max(p["attempts"] for p in job["partitions"])
    if found.computed_twice > found.kills * site.lanes:
        found.faults.append(
            f"{found.computed_twice} partitions were computed again after {found.kills} kills"
        )
    if max(found.again_s, default=0.0) > AGAIN_S:
        found.faults.append(f"after a kill nothing was done for {max(found.again_s):.1f} s")
    found.faults += site.audit(job_id)
    return found


def _again_s(site: Site, job_id: int, killed: float) -> float:
    """Seconds until a worker that was started since has done rows, or the job is over."""
    before = {p["worker"] for p in site.job(job_id)["partitions"]}

    def goes_on(job: dict[str, Any]) -> bool:
        new = [p for p in job["partitions"] if p["worker"] not in before]
        return job["state"] not in OPEN or any(p["rows"] or p["state"] == "done" for p in new)

    site.until(job_id, goes_on)
    return time.monotonic() - killed


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--rows", type=int, default=10_000_000)
    asked.add_argument("--kills", type=int, default=20)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument(
        "--databases", nargs="+", choices=["sqlite", "postgresql"], default=["sqlite", "postgresql"]
    )
    asked.add_argument("--json", action="store_true")
    given = asked.parse_args()
    figures = {}
    for name in given.databases:
        with (
            tempfile.TemporaryDirectory() as folder,
            database(name) as settings,
            Site(Path(folder), given.rows, **settings).up() as site,
        ):
            figures[name] = asdict(kill_workers(site, given.kills, given.seed))
    if given.json:
        print(json.dumps(figures))
    else:
        print(machine(), *(f"{name}: {found}" for name, found in figures.items()), sep="\n")
    return 1 if any(found["faults"] for found in figures.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
