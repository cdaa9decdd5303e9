"""kill -9 of the worker during one job, and an audit of the job's output.

The worker that the server runs is killed at random times, evenly spread over the job's rows. At the end every
row must be exactly once in the output or in the errors file, in input order and with its own answer. A kill
may cost the partitions in flight, one per lane, and rows must be processed again within `RECOVERY_S`.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any

from registry.jobs.jobs import OPEN_STATES
from tests.harness.job_site import JobSite, processed_rows, repeated_partitions

RECOVERY_S = 10.0


@dataclass
class WorkerKillReport:
    """Counts and times of one job, and the faults that the audit reports."""

    kills: int = 0
    seconds: float = 0.0  # from POST to the end of the job
    recovery_s: list[float] = field(default_factory=list)  # from each kill until rows were processed again
    partitions: int = 0
    repeated: int = 0  # computations of partitions that did not count
    max_attempts: int = 0  # of one partition
    faults: list[str] = field(default_factory=list)


def kill_workers(site: JobSite, kills: int, seed: int = 1) -> WorkerKillReport:
    """Run one job and kill its worker `kills` times."""
    report, randomness = WorkerKillReport(), random.Random(seed)
    shares = sorted(randomness.uniform(0.02, 0.98) for _ in range(kills))
    site.wait_for_server_worker()
    start = time.monotonic()
    job_id = site.start_job()
    for share in shares:
        threshold = share * site.rows
        job = site.wait_until(
            job_id,
            lambda job, rows=threshold: processed_rows(job) >= rows or job["state"] not in OPEN_STATES,
        )
        if job["state"] not in OPEN_STATES:
            report.faults.append(f"the job ended before kill {report.kills + 1}")
            break
        site.kill_server_worker()
        report.kills += 1
        report.recovery_s.append(_recovery_s(site, job_id, time.monotonic()))
    job = site.wait_until_ended(job_id)
    report.seconds = time.monotonic() - start
    report.partitions, report.repeated = len(job["partitions"]), repeated_partitions(job)
    report.max_attempts = max(p["attempts"] for p in job["partitions"])
    if report.repeated > report.kills * site.lanes:
        report.faults.append(f"{report.repeated} partitions were computed again after {report.kills} kills")
    if max(report.recovery_s, default=0.0) > RECOVERY_S:
        report.faults.append(f"no rows were processed for {max(report.recovery_s):.1f} s after a kill")
    report.faults += site.audit(job_id)
    return report


def _recovery_s(site: JobSite, job_id: int, killed_at: float) -> float:
    """Return the seconds until a new worker has processed rows, or the job has ended."""
    old_workers = {p["worker"] for p in site.job(job_id)["partitions"]}

    def recovered(job: dict[str, Any]) -> bool:
        new = [p for p in job["partitions"] if p["worker"] not in old_workers]
        return job["state"] not in OPEN_STATES or any(p["rows"] or p["state"] == "done" for p in new)

    site.wait_until(job_id, recovered)
    return time.monotonic() - killed_at
