"""What can happen to a job beside a killed worker: is its state clear, is every row scored once all the same?

    python -m benchmarks.batch_trouble [--rows 4000000] [--only NAME ...] [--json]

Each trouble has a server of its own, on SQLite unless it says otherwise. Where a job has to fail, what it had
done must not be done again once it is resumed. Exit 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._jobs import MODEL, OPEN, Site, database, summary, twice, write
from benchmarks._support import machine

Faults = list[str]


def two_workers(site: Site) -> Faults:
    """On PostgreSQL: each partition is computed once, by one of them."""
    with site.workers(2):
        job = site.ended(job_id := site.start())
    faults = site.audit(job_id)
    if twice(job):
        faults.append(f"{twice(job)} partitions were computed twice")
    if len({p["worker"] for p in job["partitions"]}) != 2:
        faults.append("one worker did it all")
    return faults


def sleeper_after_the_end(site: Site) -> Faults:
    """A worker is stopped (SIGSTOP) in mid-job and wakes when another has done it all."""
    with site.workers(1) as (sleeper,):
        site.under_way(job_id := site.start())
        _stop(site, job_id, sleeper)
        with site.workers(1):
            before = site.ended(job_id)
            sleeper.send_signal(signal.SIGCONT)
            _await_awake(site)
    faults = site.audit(job_id)
    if site.job(job_id) != before:
        faults.append("the sleeper changed the record")
    return faults


def sleeper_in_mid_job(site: Site) -> Faults:
    """The same, and it wakes when another is at its partitions."""
    with site.workers(1) as (sleeper,):
        site.under_way(job_id := site.start())
        _stop(site, job_id, sleeper)
        with site.workers(1):
            site.until(job_id, lambda job: twice(job) > 0 or job["state"] not in OPEN)
            sleeper.send_signal(signal.SIGCONT)
            site.ended(job_id)
            _await_awake(site)
    return site.audit(job_id)


def _stop(site: Site, job_id: int, worker: subprocess.Popen[bytes]) -> None:
    """SIGSTOP in the middle of a partition; on SQLite outside of a transaction: nobody else could write."""
    while True:
        worker.send_signal(signal.SIGSTOP)
        if _can_write(site) and any(p["state"] == "running" for p in site.job(job_id)["partitions"]):
            return
        worker.send_signal(signal.SIGCONT)
        time.sleep(0.05)


def _can_write(site: Site) -> bool:
    if "database_url" in site.settings:
        return True
    with contextlib.closing(sqlite3.connect(site.server.home / "registry.db", timeout=0.2)) as database:
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        return True


def _await_awake(site: Site) -> None:
    """Until the sleeper has found that its work is not wanted."""
    give_up = time.monotonic() + 60
    while not any(said in site.log.read_text() for said in ("task.dropped", "task.failed")):
        if time.monotonic() > give_up:
            raise TimeoutError("the sleeper says nothing")
        time.sleep(0.02)


def killed_server(site: Site) -> Faults:
    """kill -9 of the server, which takes its worker with it, and a new start."""
    site.until_worker()
    site.under_way(job_id := site.start())
    faults = [f"process {p.pid} outlived its server" for p in site.server.kill()]
    site.server.start()
    site.ended(job_id)
    return faults + site.audit(job_id)


def stopped_server(site: Site) -> Faults:
    """SIGTERM to the server: what is in flight is given back, and no attempt is counted."""
    site.until_worker()
    site.under_way(job_id := site.start())
    code = site.server.terminate()
    site.server.start()
    job = site.ended(job_id)
    faults = site.audit(job_id) + ([f"exit code {code}"] if code else [])
    if twice(job):
        faults.append(f"{twice(job)} attempts were lost")
    return faults


def disk_full(site: Site) -> Faults:
    """No space left where the parts are written, and later there is."""
    with site.workers(1), small_disk(site.server.home / "jobs") as ballast:
        site.under_way(job_id := site.start())
        ballast()
        job = site.ended(job_id)
        faults = failed(job, "No space left on device")
        ballast(False)
        faults += resumed(site, job)
    return faults


def archived(site: Site) -> Faults:
    """The version goes out of use; deleting it is refused. Brought back, the job goes on."""
    version = site.publish()
    place = f"/v1/models/{MODEL}/versions/{version}"
    with site.workers(1):
        site.under_way(job_id := site.start(version=version))
        status, _ = site.server.call("DELETE", place)
        faults = [] if status == 409 else [f"deleting the version was answered with {status}"]
        site.server.ask("PATCH", place, {"archived": True})
        job = site.ended(job_id)
        faults += failed(job, f"{MODEL}:{version} is archived")
        site.server.ask("PATCH", place, {"archived": False})
        return faults + resumed(site, job)


def alias_moved(site: Site) -> Faults:
    """The alias points elsewhere: the job stays with the version it began with."""
    other = site.publish(seed=1)
    with site.workers(1):
        site.under_way(job_id := site.start())
        site.server.ask("PUT", f"/v1/models/{MODEL}/aliases/champion", {"version": other})
        job = site.ended(job_id)
    faults = site.audit(job_id)
    if job["version"] != 1:
        faults.append(f"the job scored with version {job['version']}")
    return faults


def input_changed(site: Site) -> Faults:
    """Somebody writes the input anew."""
    with site.workers(1):
        site.under_way(job_id := site.start())
        write(site.data, site.rows - 1, len(list(site.data.iterdir())))
        return failed(site.ended(job_id), "changed since the job was planned")


def parts_gone(site: Site) -> Faults:
    """Somebody deletes a finished part: it is made again."""
    with site.workers(1):
        site.until(job_id := site.start(), lambda job: job["partitions_done"] > 0)
        part = next((site.server.home / "jobs" / str(job_id)).glob("part-*"))
        part.unlink()
        site.ended(job_id)
    return site.audit(job_id)


def failed(job: dict[str, Any], why: str) -> Faults:
    return (
        [] if job["state"] == "failed" and why in job["error"] else [f"not failed by {why!r}: {summary(job)}"]
    )


def resumed(site: Site, before: dict[str, Any]) -> Faults:
    """`resume`, to the end: what was done before is not done again."""
    site.server.ask("POST", f"/v1/jobs/{before['id']}/resume")
    after = {p["number"]: p for p in site.ended(before["id"])["partitions"]}
    done = [p for p in before["partitions"] if p["state"] == "done"]
    again = [p["number"] for p in done if after[p["number"]]["finished_at"] != p["finished_at"]]
    faults = [f"partitions {again} were done again"] if again else []
    return faults + site.audit(before["id"])


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Callable[[bool], None]]:
    """A file system of its own at `place`, and what fills it (and, given False, empties it). Needs root."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(place)], check=True)

    def fill(full: bool = True) -> None:
        ballast = place / "ballast"
        if not full:
            ballast.unlink()
            return
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


class Trouble(NamedTuple):
    happens: Callable[[Site], Faults]
    worker: bool = False  # the server's own
    database: str = "sqlite"


TROUBLES = {
    "two workers": Trouble(two_workers, database="postgresql"),
    "sleeper after the end": Trouble(sleeper_after_the_end),
    "sleeper after the end, PostgreSQL": Trouble(sleeper_after_the_end, database="postgresql"),
    "sleeper in mid-job": Trouble(sleeper_in_mid_job),
    "killed server": Trouble(killed_server, worker=True),
    "stopped server": Trouble(stopped_server, worker=True),
    "disk full": Trouble(disk_full),
    "archived": Trouble(archived),
    "alias moved": Trouble(alias_moved),
    "input changed": Trouble(input_changed),
    "parts gone": Trouble(parts_gone),
}


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--rows", type=int, default=4_000_000)
    asked.add_argument("--only", nargs="+", choices=TROUBLES, default=list(TROUBLES))
    asked.add_argument("--json", action="store_true")
    given = asked.parse_args()
    found: dict[str, Faults] = {}
    for name in given.only:
        if name == "disk full" and os.geteuid() != 0:
            print("disk full: left out, it needs root to mount a small disk", file=sys.stderr)
            continue
        trouble = TROUBLES[name]
        with tempfile.TemporaryDirectory() as folder, database(trouble.database) as settings:
            site = Site(Path(folder), given.rows, files=40, worker=trouble.worker, **settings)
            with site.up():
                started = time.monotonic()
                found[name] = trouble.happens(site)
        if not given.json:
            print(f"{name}: {found[name] or 'no fault'} ({time.monotonic() - started:.0f} s)", flush=True)
    print(json.dumps(found) if given.json else machine())
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
