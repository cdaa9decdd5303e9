"""Faults that can happen during a job. Each function causes one and returns what went wrong, as a list.

Every row must still be scored exactly once. Where the job has to fail, partitions that were done must not be
computed again after `resume`.
"""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from registry.jobs.jobs import OPEN_STATES
from tests.harness.job_site import (
    MODEL,
    JobSite,
    repeated_partitions,
    summarize_job,
    write_input,
)

Faults = list[str]


def two_workers(site: JobSite) -> Faults:
    """Two workers share a job: each partition is computed once. Needs PostgreSQL."""
    with site.workers(2):
        job = site.wait_until_ended(job_id := site.start_job())
    faults = site.audit(job_id)
    if repeated_partitions(job):
        faults.append(f"{repeated_partitions(job)} partitions were computed twice")
    if len({p["worker"] for p in job["partitions"]}) != 2:
        faults.append("one worker computed all partitions")
    return faults


def worker_wakes_after_end(site: JobSite) -> Faults:
    """A worker is stopped (SIGSTOP) during a job, and continues when another worker has finished it."""
    with site.workers(1) as (stopped_worker,):
        site.wait_until_under_way(job_id := site.start_job())
        _stop_during_partition(site, job_id, stopped_worker)
        with site.workers(1):
            before = site.wait_until_ended(job_id)
            stopped_worker.send_signal(signal.SIGCONT)
            _wait_for_dropped_task(site)
    faults = site.audit(job_id)
    if site.job(job_id) != before:
        faults.append("the stopped worker changed the record")
    return faults


def worker_wakes_during_job(site: JobSite) -> Faults:
    """A worker is stopped (SIGSTOP), and continues while another worker computes its partitions."""
    with site.workers(1) as (stopped_worker,):
        site.wait_until_under_way(job_id := site.start_job())
        _stop_during_partition(site, job_id, stopped_worker)
        with site.workers(1):
            site.wait_until(
                job_id, lambda job: repeated_partitions(job) > 0 or job["state"] not in OPEN_STATES
            )
            stopped_worker.send_signal(signal.SIGCONT)
            site.wait_until_ended(job_id)
            _wait_for_dropped_task(site)
    return site.audit(job_id)


def server_killed(site: JobSite) -> Faults:
    """The server gets kill -9, its worker ends with it, and the server is started again."""
    site.wait_for_server_worker()
    site.wait_until_under_way(job_id := site.start_job())
    faults = [f"process {p.pid} outlived its server" for p in site.server.kill()]
    site.server.start()
    site.wait_until_ended(job_id)
    return faults + site.audit(job_id)


def server_stopped(site: JobSite) -> Faults:
    """The server gets SIGTERM: partitions in flight are released and cost no attempt."""
    site.wait_for_server_worker()
    site.wait_until_under_way(job_id := site.start_job())
    exit_code = site.server.terminate()
    site.server.start()
    job = site.wait_until_ended(job_id)
    faults = site.audit(job_id) + ([f"exit code {exit_code}"] if exit_code else [])
    if repeated_partitions(job):
        faults.append(f"{repeated_partitions(job)} attempts were lost")
    return faults


def disk_full(site: JobSite) -> Faults:
    """The disk with the partitions' files is full, and has space again later. Needs root."""
    with site.workers(1), small_disk(site.server.home / "jobs") as fill_disk:
        site.wait_until_under_way(job_id := site.start_job())
        fill_disk()
        job = site.wait_until_ended(job_id)
        faults = failure_faults(job, "No space left on device")
        fill_disk(False)
        faults += resume_faults(site, job)
    return faults


def version_archived(site: JobSite) -> Faults:
    """The job's version cannot be deleted; once it is archived the job fails, and resumes after unarchive."""
    version = site.publish()
    version_path = f"/v1/models/{MODEL}/versions/{version}"
    with site.workers(1):
        site.wait_until_under_way(job_id := site.start_job(version=version))
        status, _ = site.server.call("DELETE", version_path)
        faults = [] if status == 409 else [f"deleting the version returned status {status}"]
        site.server.call_json("PATCH", version_path, {"archived": True})
        job = site.wait_until_ended(job_id)
        faults += failure_faults(job, f"{MODEL}:{version} is archived")
        site.server.call_json("PATCH", version_path, {"archived": False})
        return faults + resume_faults(site, job)


def alias_moved(site: JobSite) -> Faults:
    """The alias moves during the job: the job keeps the version that it started with."""
    other_version = site.publish(seed=1)
    with site.workers(1):
        site.wait_until_under_way(job_id := site.start_job())
        site.server.call_json("PUT", f"/v1/models/{MODEL}/aliases/champion", {"version": other_version})
        job = site.wait_until_ended(job_id)
    faults = site.audit(job_id)
    if job["version"] != 1:
        faults.append(f"the job scored with version {job['version']}")
    return faults


def input_changed(site: JobSite) -> Faults:
    """The input is written again during the job: the job fails."""
    with site.workers(1):
        site.wait_until_under_way(job_id := site.start_job())
        write_input(site.data, site.rows - 1, len(list(site.data.iterdir())))
        return failure_faults(site.wait_until_ended(job_id), "changed since the job was planned")


def part_deleted(site: JobSite) -> Faults:
    """The file of a finished partition is deleted: the partition is computed again."""
    with site.workers(1):
        site.wait_until(job_id := site.start_job(), lambda job: job["partitions_done"] > 0)
        part = next((site.server.home / "jobs" / str(job_id)).glob("part-*"))
        part.unlink()
        site.wait_until_ended(job_id)
    return site.audit(job_id)


def failure_faults(job: dict[str, Any], reason: str) -> Faults:
    """Return a fault unless the job failed for this reason."""
    if job["state"] == "failed" and reason in job["error"]:
        return []
    return [f"the job did not fail with {reason!r}: {summarize_job(job)}"]


def resume_faults(site: JobSite, before: dict[str, Any]) -> Faults:
    """Resume the job to its end; return a fault for each finished partition that was computed again."""
    site.server.call_json("POST", f"/v1/jobs/{before['id']}/resume")
    after = {p["number"]: p for p in site.wait_until_ended(before["id"])["partitions"]}
    done = [p for p in before["partitions"] if p["state"] == "done"]
    again = [p["number"] for p in done if after[p["number"]]["finished_at"] != p["finished_at"]]
    faults = [f"partitions {again} were computed again"] if again else []
    return faults + site.audit(before["id"])


@contextlib.contextmanager
def small_disk(mount_point: Path) -> Iterator[Callable[..., None]]:
    """Mount a file system of 128 MB; yield a function that fills it (False: empties it). Needs root."""
    mount_point.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(mount_point)], check=True)

    def fill_disk(full: bool = True) -> None:
        ballast = mount_point / "ballast"
        if not full:
            ballast.unlink()
            return
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))

    try:
        yield fill_disk
    finally:
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


def _stop_during_partition(site: JobSite, job_id: int, worker: subprocess.Popen[bytes]) -> None:
    """Send SIGSTOP during a partition; on SQLite outside of a transaction, which would block all writers."""
    while True:
        worker.send_signal(signal.SIGSTOP)
        if _can_write(site) and any(p["state"] == "running" for p in site.job(job_id)["partitions"]):
            return
        worker.send_signal(signal.SIGCONT)
        time.sleep(0.05)


def _can_write(site: JobSite) -> bool:
    if "database_url" in site.settings:
        return True
    with contextlib.closing(sqlite3.connect(site.server.home / "registry.db", timeout=0.2)) as database:
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        return True


def _wait_for_dropped_task(site: JobSite) -> None:
    """Wait until the worker that was stopped has dropped its outdated task."""
    deadline = time.monotonic() + 60
    while not any(event in site.worker_log.read_text() for event in ("task.dropped", "task.failed")):
        if time.monotonic() > deadline:
            raise TimeoutError("the stopped worker logged no dropped task")
        time.sleep(0.02)
