"""Recorder: collects the predictions of a process and writes them to files, without delaying an answer.

The event loop appends a tuple of references per call. After about 75 small calls it joins their arrays to a
chunk. That costs 1 us per call, and their memory is reused while it is in the processor's cache. A thread
joins large calls, and writes a file per version every `FLUSH_S` seconds, earlier above `FLUSH_BYTES`.

A process that is killed loses what it has not written: the calls of the last `FLUSH_S` seconds and of the
write in progress, never more than `QUEUE_BYTES`. When that much waits, or when a file cannot be written, rows
are dropped, counted by reason (`trivium_prediction_log_dropped_rows_total`) and logged once per `REPORT_S`.

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
from typing import TYPE_CHECKING, Literal, NamedTuple

from registry.errors import describe_error
from service import startup, telemetry
from service.prediction_log import log_files

if TYPE_CHECKING:  # see service/startup.py
    from registry.rows import Outputs, Rows
    from service.prediction_log.log_tables import Chunk, LogTable, RecordedCall
    from service.runtime.loading import LoadedModel
    from service.runtime.snapshot import SnapshotLog

FLUSH_S = 5.0
FLUSH_BYTES = 16 * 2**20
QUEUE_BYTES = 64 * 2**20
"""Estimated memory of the calls that are not written. Calls beyond it are dropped."""
JOINED_BYTES = 96 * 1024
"""Estimated memory of the small calls that become one chunk."""
LARGE_BYTES = 16 * 1024
SLICE_CALLS = 256
"""Calls that the thread joins without a pause: about 0.3 ms, during which the event loop may have to wait."""
PAUSE_S = 0.001
REPORT_S = 60.0
MAX_REQUEST_ID = 128
CALL_BYTES = 1024
"""Memory of a call besides the values of its rows."""

Reason = Literal["queue_full", "not_written", "not_joined"]

_PREDICTION_ID = re.compile(r"pred-[0-9a-f]{10}-[0-9a-f]{1,16}")
_NUMBER_AT = len("pred-0123456789-")

log = telemetry.logger(__name__)


_Queued = tuple["SnapshotLog", "LoadedModel", "RecordedCall"]
"""Settings, model and call. Not a class: its creation is slow."""
_Key = tuple[int, int]
"""The id of a model and the number of a version."""


def _take(calls: deque[_Queued], limit: int) -> list[_Queued]:
    """Take up to `limit` calls, as many as another thread leaves."""
    taken: list[_Queued] = []
    try:
        for _ in range(limit):
            taken.append(calls.popleft())
    except IndexError:  # no more calls
        pass
    return taken


def _text_length(rows: Rows) -> int:
    """Return the number of characters of all texts."""
    texts = [column for column in rows.columns or () if column.dtype.kind == "O"]
    return sum(sum(map(len, filter(None, column.tolist()))) for column in texts)


def is_prediction_id(text: str) -> bool:
    """Whether `text` has the form of the ids that `Predictor` makes."""
    return _PREDICTION_ID.fullmatch(text) is not None


def is_sampled(prediction_id: str, sample: float) -> bool:
    """Whether a call belongs to the sample of this share. The same id always gives the same result."""
    number = int(prediction_id[_NUMBER_AT:], 16)
    return (number * 0x9E3779B1 & 0xFFFFFFFF) < sample * 2**32  # Knuth's multiplicative hash


class _Dropped(NamedTuple):
    rows: int
    error: str | None


class _Joined(NamedTuple):
    """Calls of one version as a chunk."""

    key: _Key
    model: str
    table: LogTable
    chunk: Chunk


class Recorder:
    """Records the predictions of this process below the directory `root`.

    `record` is called by one thread, the one of the event loop; the other methods by any thread.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._calls: deque[_Queued] = deque()
        self._large_calls: deque[_Queued] = deque()
        self._joined: deque[_Joined] = deque()
        self._added = 0  # estimated bytes; written by `record` only
        self._removed = 0  # of them, those that are written or dropped; changed by `flush` only
        self._unjoined = 0  # bytes of small calls since the last chunk
        self._tables: dict[_Key, LogTable] = {}
        self._is_joining = False  # `record` has taken calls that are not in `_joined` yet
        self._can_join = False  # numpy and pyarrow are imported
        self._idle = True
        self._wake, self._due = threading.Event(), threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._writing = threading.Lock()
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
        """Record a call that was answered, if it belongs to the sample. Never waits."""
        if settings.sample < 1 and not is_sampled(prediction_id, settings.sample):
            return
        row_count = len(rows)
        waiting = self._added - self._removed
        if waiting >= QUEUE_BYTES:
            self._drop(loaded.name, "queue_full", row_count)
            return
        size = CALL_BYTES + row_count * loaded.codec.row_bytes
        if rows.columns is not None:  # only models with text features have columns
            size += _text_length(rows)
        text = None if request_id is None else request_id[:MAX_REQUEST_ID].decode("latin-1")
        call = (time.time(), prediction_id, alias, text, row_count, rows, outputs)
        if size > LARGE_BYTES:
            self._large_calls.append((settings, loaded, call))
        else:
            self._calls.append((settings, loaded, call))
            self._unjoined += size
            if self._unjoined >= JOINED_BYTES and self._can_join:
                self._join_small_calls()
        self._added += size  # after the call is in a queue: otherwise the thread might sleep before it is
        if self._idle:
            self._start()
        elif waiting >= FLUSH_BYTES and not self._due.is_set():
            self._due.set()

    def _join_small_calls(self) -> None:
        self._unjoined = 0
        self._is_joining = True
        try:
            self._join(_take(self._calls, SLICE_CALLS))
        finally:
            self._is_joining = False

    def flush(self) -> None:
        """Write every call that was recorded before. Blocks."""
        with self._writing:
            added = self._added
            self._join_all(self._large_calls, 1)
            self._join_all(self._calls, SLICE_CALLS)
            while self._is_joining:
                time.sleep(PAUSE_S)
            self._write()
            self._removed = added

    def close(self) -> None:
        """Write what is recorded and end the thread."""
        self._stopping = True
        self._wake.set()
        self._due.set()
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
        import service.prediction_log.log_parquet
        import service.prediction_log.log_tables  # noqa: F401

        self._can_join = True
        while not self._stopping:
            self._due.wait(FLUSH_S)
            self._due.clear()
            self.flush()
            self._report()
            if self._added == self._removed and not self._stopping:
                self._sleep()

    def _sleep(self) -> None:
        """Wait until `record` wakes the thread."""
        self._idle = True
        if self._added == self._removed:  # otherwise a call was added before `_idle` was set
            self._wake.wait(REPORT_S if self._dropped else None)
        self._wake.clear()
        self._idle = False

    def _join_all(self, calls: deque[_Queued], slice_calls: int) -> None:
        """Join the calls that are there now, with a pause after each slice."""
        remaining = len(calls)
        while remaining > 0 and (taken := _take(calls, min(remaining, slice_calls))):
            remaining -= len(taken)
            self._join(taken)
            if remaining > 0 and not self._stopping:
                time.sleep(PAUSE_S)

    def _join(self, queued: list[_Queued]) -> None:
        """Add the calls to `_joined`, those of each version as one chunk."""
        groups: dict[int, list[_Queued]] = {}  # by the identity of the loaded model
        for item in queued:
            groups.setdefault(id(item[1]), []).append(item)
        for group in groups.values():
            settings, loaded, _ = group[0]
            key, calls = (settings.model_id, loaded.number), [call for _, _, call in group]
            try:
                table = self._table(key, loaded)
                self._joined.append(_Joined(key, loaded.name, table, table.chunk(calls)))
            except Exception:  # a call must be answered whatever happens here
                log.exception("prediction_log.not_joined", model=loaded.name, version=loaded.number)
                self._drop(loaded.name, "not_joined", sum(call[4] for call in calls))

    def _table(self, key: _Key, loaded: LoadedModel) -> LogTable:
        from service.prediction_log.log_tables import LogTable

        if (table := self._tables.get(key)) is None:
            table = self._tables[key] = LogTable(loaded.number, loaded.codec.signature)
        return table

    def _write(self) -> None:
        """Write a file for each version. The tables of versions that have no more calls are dropped."""
        versions: dict[_Key, list[_Joined]] = {}
        for _ in range(len(self._joined)):
            joined = self._joined.popleft()
            versions.setdefault(joined.key, []).append(joined)
        for key in list(self._tables):
            if key not in versions:
                self._tables.pop(key)
        for parts in versions.values():
            rows = sum(part.chunk.rows for part in parts)
            try:
                self._write_file(parts)
            except Exception as error:  # the disk is full, or the log was deleted with its model
                self._drop(parts[0].model, "not_written", rows, describe_error(error))
            else:
                telemetry.LOGGED_ROWS.labels(parts[0].model).inc(rows)

    def _write_file(self, parts: list[_Joined]) -> None:
        from service.prediction_log.log_parquet import in_time_order, write_table

        (model_id, number), model, log_table, _ = parts[0]
        directory = log_files.model_directory(self._root, model, model_id) / str(number)
        table = in_time_order(log_table.table([part.chunk for part in parts]))
        write_table(directory, table, 0, f"{self._writer}-{next(self._numbers):x}")

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
