"""Engine `ray` in the worker: sends unfinished partitions to a driver process and records its reports.

Each report is recorded when it arrives, under the fence of the task's claim. If the worker dies, another one
continues with the unfinished partitions. The transaction of the last partition finishes the task.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import msgspec

from registry import db, queue
from registry.errors import Unavailable
from registry.jobs import jobs
from registry.jobs.tables import JobRow
from registry.tables import now
from service import telemetry
from service.config import Settings
from service.worker.job_work import JobWork, PermanentFailure
from service.worker.lanes import RunningTask, lock_job
from service.worker.ray.messages import RayOrder, RayPartition, RayReport

POLL_S = 0.2
"""Interval at which the engine checks whether the task's claim is still valid."""
TEMP_DIRECTORY = "/tmp"  # noqa: S108 - Ray creates sockets there, and their paths must be short
DRIVER_EXIT_S = 15.0
"""Time for a driver to end after SIGTERM."""
DRIVER_CODE = "from service.worker.ray.driver import main; main()"
"""Not `-m`, which would make Ray add this directory to the import path of its workers."""

log = telemetry.logger(__name__)


class RayEngine:
    """Runs the partitions of a job on Ray. `works`: by job kind."""

    def __init__(self, settings: Settings, sessions: db.Sessions, works: Mapping[str, JobWork]) -> None:
        self._settings = settings
        self._sessions = sessions
        self._works = works

    def run(self, job: JobRow, running: RunningTask) -> None:
        """Run all unfinished partitions and finish the task.

        Raises `PermanentFailure`, or `Unavailable` if partitions remain that another attempt may finish.
        """
        order = self._order(job, running.task.fence)
        unfinished = {(p.stage, p.number): "Ray ended before it was finished" for p in order.partitions}
        with _Driver(order) as driver:
            for line in driver.lines(lambda: running.report_progress(0, 0)):
                report = msgspec.json.decode(line, type=RayReport)
                place = (report.stage, report.number)
                if report.error is None:
                    del unfinished[place]
                    self._record(running, report, is_last=not unfinished)
                    if not unfinished:
                        return
                elif report.is_permanent:
                    raise PermanentFailure(f"partition {report.number}: {report.error}")
                else:
                    unfinished[place] = report.error
                    log.warning("partition.failed", job=job.id, number=report.number, reason=report.error)
        (_, number), reason = next(iter(unfinished.items()))
        raise Unavailable(f"partition {number}: {reason}")

    def _order(self, job: JobRow, fence: int) -> RayOrder:
        with db.reading(self._sessions) as session:
            rows = [p for p in jobs.partitions(session, job.id) if p.result is None]
        shared, parts = self._works[job.kind].ray_input(job, rows)
        return RayOrder(
            address=os.environ.get("RAY_ADDRESS"),
            local_actors=self._settings.batch_lanes,
            kind=job.kind,
            directory=str(self._settings.job_directory(job.id)),
            shared=shared,
            partitions=[
                RayPartition(row.stage, row.number, fence, part)
                for row, part in zip(rows, parts, strict=True)
            ],
        )

    def _record(self, running: RunningTask, report: RayReport, is_last: bool) -> None:
        with self._sessions.begin() as session:
            job = lock_job(session, running)
            row = jobs.partition(session, job.id, report.stage, report.number)
            row.worker, row.started_at = report.worker, now() - timedelta(seconds=report.seconds)
            assert report.result is not None
            jobs.finish_partition(
                session, job, row, rows=report.rows, failed=report.failed, result=report.result
            )
            if is_last:
                queue.finish(session, running.task.id, running.task.fence)


class _Driver:
    """The driver process. Leaving the context ends it and every process that it started."""

    def __init__(self, order: RayOrder) -> None:
        self._order = msgspec.msgpack.encode(order)
        self._is_local = order.address is None

    def __enter__(self) -> _Driver:
        self._directory = Path(tempfile.mkdtemp(prefix="trivium-ray-", dir=TEMP_DIRECTORY))
        read_fd, write_fd = os.pipe()
        self._reports = os.fdopen(read_fd, "rb", buffering=0)
        try:
            with (self._directory / "stderr").open("wb") as stderr:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", DRIVER_CODE, str(os.getpid()), str(write_fd)],
                    env=_environment(self._is_local),
                    cwd=self._directory,
                    stdin=subprocess.PIPE,
                    stdout=stderr,
                    stderr=stderr,
                    pass_fds=[write_fd],
                    start_new_session=True,  # its children are killed as a group; it ignores Ctrl-C
                )
        except OSError:
            self._reports.close()
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        finally:
            os.close(write_fd)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(DRIVER_EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError):  # Ray's helper processes outlive a killed driver
            os.killpg(self._process.pid, signal.SIGKILL)
        self._reports.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def lines(self, check: Callable[[], None]) -> Iterator[bytes]:
        """Yield reports as they arrive. Calls `check` repeatedly; its exception ends the iteration.

        Raises `Unavailable` if the driver failed.
        """
        self._send_order(check)
        incomplete = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._reports, selectors.EVENT_READ)
            while True:
                check()
                if not selector.select(POLL_S):
                    continue
                data = self._reports.read(1 << 16)
                if not data:
                    break
                *lines, incomplete = (incomplete + data).split(b"\n")
                yield from lines
        if (code := self._process.wait()) != 0:
            raise Unavailable(f"Ray: {self._last_stderr_line() or f'its driver ended with exit code {code}'}")

    def _send_order(self, check: Callable[[], None]) -> None:
        check()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(self._order)

    def _last_stderr_line(self) -> str:
        lines = (self._directory / "stderr").read_text(errors="replace").strip().splitlines()
        return lines[-1].strip()[:500] if lines else ""


def _environment(is_local: bool) -> dict[str, str]:
    """Return the worker's environment without keys and database address, and with Ray's settings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRIVIUM_", "PG"))}
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    environment.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # of 41 s each: report a missing cluster soon
    if is_local:
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # a one-machine cluster: bind 127.0.0.1 only
        environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    return environment
