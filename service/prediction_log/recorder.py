"""Recorder: collects the predictions of a process and writes them to files, without delaying an answer.

The event loop appends a tuple of references to a queue. One thread takes them from it, joins many at a
time, and writes a file per version every `FLUSH_S` seconds or `FLUSH_BYTES`. A process that
is killed loses what it has not written: the calls of the last `FLUSH_S` seconds and those of the write in
progress, at most `QUEUE_BYTES` + `FLUSH_BYTES` of them.

When the queue is full or a file cannot be written, rows are dropped, counted by reason
(`trivium_prediction_log_dropped_rows_total`) and logged once per `REPORT_S`.

This module imports no numpy and no pyarrow: the thread imports them when the first call is recorded.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from zlib import crc32

from service import startup, telemetry
from service.prediction_log import log_files

if TYPE_CHECKING:  # see service/startup.py
    from registry.rows import Outputs, Rows
    from service.prediction_log.log_tables import Chunk, LogTable
    from service.runtime.loading import LoadedModel
    from service.runtime.snapshot import SnapshotLog

FLUSH_S = 5.0
FLUSH_BYTES = 16 * 2**20
QUEUE_BYTES = 64 * 2**20
"""Estimated memory of the calls that wait for conversion. Calls beyond it are dropped."""
POLL_S = 0.1
"""Pause between two looks at the queue while there are calls: they are converted many at a time."""
SLICE_CALLS = 256
"""Calls that are converted without a pause: about 0.5 ms, during which the event loop may have to wait."""
SLICE_BYTES = 2**20
PAUSE_S = 0.001
REPORT_S = 60.0
MAX_REQUEST_ID = 128
CALL_BYTES = 1024
"""Memory of a call besides the values of its rows."""

Reason = Literal["queue_full", "not_written", "not_converted"]

_PREDICTION_ID = re.compile(r"pred-[0-9a-f]{10}-[0-9a-f]{1,16}")

log = telemetry.logger(__name__)


def is_prediction_id(text: str) -> bool:
    """Whether `text` has the form of the ids that `Predictor` makes."""
    return _PREDICTION_ID.fullmatch(text) is not None


def is_sampled(prediction_id: str, sample: float) -> bool:
    """Whether a call belongs to the sample of this share. The same id always gives the same result."""
    mixed = crc32(prediction_id.encode()) * 0x9E3779B1 & 0xFFFFFFFF  # Knuth's multiplicative hash
    return mixed < sample * 2**32


_Queued = tuple["SnapshotLog", "LoadedModel", int, tuple[Any, ...]]
"""Settings, model, estimated bytes, and the fields of a `RecordedCall`. Not a class: its creation is slow."""


class _Dropped(NamedTuple):
    rows: int
    error: str | None


class _Buffer:
    """The calls of one version that are not written yet."""

    def __init__(self, directory: Path, model: str, table: LogTable) -> None:
        self.directory, self.model, self.table = directory, model, table
        self.chunks: list[Chunk] = []


class Recorder:
    """Records the predictions of this process below the directory `root`.

    `record` is called by one thread, the one of the event loop; the other methods by any thread.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._queue: deque[_Queued] = deque()
        self._added = self._taken = 0  # estimated bytes, each written by one thread only
        self._idle = True
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._writing = threading.Lock()  # held to convert and to write
        self._buffers: dict[tuple[int, int], _Buffer] = {}  # by model id and version number
        self._buffered_bytes, self._buffered_since = 0, 0.0
        self._writer = token_hex(5)
        self._numbers = count(1)
        self._reporting = threading.Lock()
        self._dropped: dict[tuple[str, Reason], _Dropped] = {}  # since the last report
        self._reported_at = -REPORT_S

    def record(
        self,
        settings: SnapshotLog,
        loaded: LoadedModel,
        prediction_id: str,
        alias: str | None,
        request_id: bytes | None,
        rows: Rows,
        outputs: Outputs,
    ) -> None:
        """Record a call that was answered, if it belongs to the sample. Never blocks."""
        if settings.sample < 1 and not is_sampled(prediction_id, settings.sample):
            return
        row_count = len(rows)
        if self._added - self._taken >= QUEUE_BYTES:
            self._drop(loaded.name, "queue_full", row_count)
            return
        size = CALL_BYTES + row_count * loaded.codec.row_bytes
        text = None if request_id is None else request_id[:MAX_REQUEST_ID].decode("latin-1")
        call = (time.time(), prediction_id, alias, text, row_count, rows, outputs)
        self._queue.append((settings, loaded, size, call))
        self._added += size
        if self._idle:
            self._start()

    def flush(self) -> None:
        """Write every call that was recorded before. Blocks."""
        with self._writing:
            self._convert()
            self._write()

    def close(self) -> None:
        """Write what is recorded and end the thread."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self.flush()
        self._report()

    def _start(self) -> None:
        self._idle = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
            self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        startup.import_pyarrow()
        while not self._stopping:
            with self._writing:
                self._convert()
                if self._is_due():
                    self._write()
            self._report()
            if self._queue or self._buffered_bytes:
                self._wake.wait(POLL_S)
            else:
                self._sleep()

    def _sleep(self) -> None:
        """Wait until `record` wakes the thread."""
        self._idle = True
        if not self._queue:  # otherwise a call was added before `_idle` was set
            self._wake.wait(REPORT_S if self._dropped else None)
        self._wake.clear()
        self._idle = False

    def _convert(self) -> None:
        """Convert the calls that are in the queue now, with a pause after each slice."""
        remaining = len(self._queue)
        while remaining > 0:
            calls = self._take()
            remaining -= len(calls)
            groups: dict[tuple[int, int], list[_Queued]] = {}
            for queued in calls:
                settings, loaded, *_ = queued
                groups.setdefault((settings.model_id, loaded.number), []).append(queued)
            for key, group in groups.items():
                self._convert_calls(key, group)
            if self._is_due():
                self._write()
            if remaining > 0 and not self._stopping:
                time.sleep(PAUSE_S)

    def _is_due(self) -> bool:
        overdue = time.monotonic() - self._buffered_since >= FLUSH_S
        return self._buffered_bytes >= FLUSH_BYTES or (self._buffered_bytes > 0 and overdue)

    def _take(self) -> list[_Queued]:
        """Take a slice of calls from the queue. Many rows end the slice early."""
        calls: list[_Queued] = []
        size = 0
        while self._queue and len(calls) < SLICE_CALLS and size < SLICE_BYTES:
            queued = self._queue.popleft()
            calls.append(queued)
            size += queued[2]
        self._taken += size
        return calls

    def _convert_calls(self, key: tuple[int, int], queued: list[_Queued]) -> None:
        from service.prediction_log.log_tables import LogTable, RecordedCall  # see the module's docstring

        settings, loaded, *_ = queued[0]
        calls = [RecordedCall(*call) for *_, call in queued]
        try:
            buffer = self._buffers.get(key)
            if buffer is None:
                directory = log_files.model_directory(self._root, loaded.name, settings.model_id)
                table = LogTable(loaded.number, loaded.codec.signature)
                buffer = self._buffers[key] = _Buffer(directory / str(loaded.number), loaded.name, table)
            chunk = buffer.table.chunk(calls)
        except Exception:
            log.exception("prediction_log.not_converted", model=loaded.name, version=loaded.number)
            self._drop(loaded.name, "not_converted", sum(c.row_count for c in calls))
            return
        if not self._buffered_bytes:
            self._buffered_since = time.monotonic()
        buffer.chunks.append(chunk)
        self._buffered_bytes += chunk.rows * buffer.table.row_bytes

    def _write(self) -> None:
        """Write a file for each version. A version without calls since the last time loses its buffer."""
        for key, buffer in list(self._buffers.items()):
            if not buffer.chunks:
                del self._buffers[key]
                continue
            chunks, buffer.chunks = buffer.chunks, []
            rows = sum(chunk.rows for chunk in chunks)
            try:
                self._write_file(buffer, chunks)
            except Exception as error:  # the disk is full, or the log was deleted with its model
                self._drop(buffer.model, "not_written", rows, str(error))
            else:
                telemetry.LOGGED_ROWS.labels(buffer.model).inc(rows)
        self._buffered_bytes = 0

    def _write_file(self, buffer: _Buffer, chunks: list[Chunk]) -> None:
        from service.prediction_log.log_parquet import in_time_order, write_table

        table = in_time_order(buffer.table.table(chunks))
        write_table(buffer.directory, table, 0, f"{self._writer}-{next(self._numbers):x}")

    def _drop(self, model: str, reason: Reason, rows: int, error: str | None = None) -> None:
        telemetry.DROPPED_ROWS.labels(model, reason).inc(rows)
        with self._reporting:
            before = self._dropped.get((model, reason), _Dropped(0, None))
            self._dropped[model, reason] = _Dropped(before.rows + rows, error or before.error)

    def _report(self) -> None:
        """Log what was dropped since the last report, at most once per `REPORT_S`."""
        if not self._dropped or time.monotonic() - self._reported_at < REPORT_S:
            return
        self._reported_at = time.monotonic()
        with self._reporting:
            dropped, self._dropped = self._dropped, {}
        for (model, reason), (rows, error) in dropped.items():
            log.warning("prediction_log.dropped", model=model, reason=reason, rows=rows, error=error)
