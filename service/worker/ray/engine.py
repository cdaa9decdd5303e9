"""The worker's side of Ray: give the partitions that have no result to a driver, record what comes back.

A report is recorded as it comes, under the fence of the task's claim, so that whoever claims the task after
this worker died goes on with what is left. The last partition's transaction finishes the task.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import msgspec

from registry import db, queue
from registry.errors import Unavailable
from registry.jobs import jobs
from registry.jobs.tables import JobRow, PartitionRow
from registry.tables import now
from service import telemetry
from service.config import Settings
from service.worker.flight import Flight, held
from service.worker.job_kind import Hopeless
from service.worker.ray.messages import Descriptor, Order, Part, Report, Scores, Steps

LOOK_S = 0.2
"""How often to look whether the job is still wanted."""
TEMP = "/tmp"  # noqa: S108 - Ray makes sockets there, whose paths must be short: TMPDIR may be anywhere
END_S = 15.0
"""Longest a driver may take to end in order."""
MAIN = "from service.worker.ray.driver import main; main()"
"""Not `-m`: Ray would put this directory on its workers' path."""

log = telemetry.logger(__name__)


Spread = Callable[[JobRow, Sequence[PartitionRow]], tuple[Scores | Steps, list[Descriptor]]]
"""What actors need to know of a job, and what is to be done for each partition. Raises what `Work.partition`
raises."""


class Engine:
    """`kinds`: by kind of job."""

    def __init__(self, settings: Settings, sessions: db.Sessions, kinds: Mapping[str, Spread]) -> None:
        self._settings = settings
        self._sessions = sessions
        self._kinds = kinds

    def run(self, job: JobRow, flight: Flight) -> None:
        """Do all partitions that have no result, and finish the task. Raises `Hopeless`, or `Unavailable`
        when some are left that another attempt may do."""
        with db.reading(self._sessions) as session:
            rows = [p for p in jobs.partitions(session, job.id) if p.result is None]
        shared, descriptors = self._kinds[job.kind](job, rows)
        fence = flight.task.fence
        parts = [Part(r.stage, r.number, fence, d) for r, d in zip(rows, descriptors, strict=True)]
        order = Order(os.environ.get("RAY_ADDRESS"), self._settings.batch_lanes, shared, parts)
        left = {(p.stage, p.number): "Ray ended before it was done" for p in parts}
        with _Driver(order) as driver:
            for line in driver.lines(lambda: flight.alive(0, 0)):
                report = msgspec.json.decode(line, type=Report)
                place = (report.stage, report.number)
                if report.error is None:
                    del left[place]
                    self._record(flight, report, last=not left)
                    if not left:
                        return
                elif report.hopeless:
                    raise Hopeless(f"partition {report.number}: {report.error}")
                else:
                    left[place] = report.error
                    log.warning("partition.failed", job=job.id, number=report.number, why=report.error)
        (_, number), why = next(iter(left.items()))
        raise Unavailable(f"partition {number}: {why}")

    def _record(self, flight: Flight, report: Report, last: bool) -> None:
        with self._sessions.begin() as session:
            job = held(session, flight)
            row = jobs.partition(session, job.id, report.stage, report.number)
            row.worker, row.started_at = report.worker, now() - timedelta(seconds=report.seconds)
            assert report.result is not None
            jobs.finish_partition(
                session, job, row, rows=report.rows, failed=report.failed, result=report.result
            )
            if last:
                queue.finish(session, flight.task.id, flight.task.fence)


class _Driver:
    """The driver's process. Leaving ends it, and everything that it has started."""

    def __init__(self, order: Order) -> None:
        self._order = msgspec.msgpack.encode(order)
        self._local = order.address is None

    def __enter__(self) -> _Driver:
        self._home = Path(tempfile.mkdtemp(prefix="trivium-ray-", dir=TEMP))
        reading, writing = os.pipe()
        self._reports = os.fdopen(reading, "rb", buffering=0)
        try:
            with (self._home / "stderr").open("wb") as said:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", MAIN, str(os.getpid()), str(writing)],
                    env=_environment(self._local),
                    cwd=self._home,
                    stdin=subprocess.PIPE,
                    stdout=said,
                    stderr=said,
                    pass_fds=[writing],
                    start_new_session=True,  # what it starts is found by it; Ctrl-C is for the worker
                )
        except OSError:
            self._reports.close()
            shutil.rmtree(self._home, ignore_errors=True)
            raise
        finally:
            os.close(writing)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError):  # Ray's own helpers outlive a driver that was killed
            os.killpg(self._process.pid, signal.SIGKILL)
        self._reports.close()
        shutil.rmtree(self._home, ignore_errors=True)

    def lines(self, alive: Callable[[], None]) -> Iterator[bytes]:
        """As they come; `alive` is called all the time. Raises `Unavailable` when the driver failed."""
        self._send(alive)
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._reports, selectors.EVENT_READ)
            while True:
                alive()
                if not selector.select(LOOK_S):
                    continue
                data = self._reports.read(1 << 16)
                if not data:
                    break
                *whole, rest = (rest + data).split(b"\n")
                yield from whole
        if (code := self._process.wait()) != 0:
            raise Unavailable(f"Ray: {self._last_words() or f'its driver ended with {code}'}")

    def _send(self, alive: Callable[[], None]) -> None:
        alive()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(self._order)

    def _last_words(self) -> str:
        lines = (self._home / "stderr").read_text(errors="replace").strip().splitlines()
        return lines[-1].strip()[:500] if lines else ""


def _environment(local: bool) -> dict[str, str]:
    """Ours without our keys and the database's address; Ray tells nobody about itself."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRIVIUM_", "PG"))}
    kept["RAY_USAGE_STATS_ENABLED"] = "0"
    kept.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # of 41 s each: a cluster that is not there is named
    if local:
        kept["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # a Ray for one machine: everything on 127.0.0.1
        kept["RAY_AUTH_MODE"], kept["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    return kept
