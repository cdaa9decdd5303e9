"""The recorder: what it writes, what it drops, and what a kill leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog.testing

from registry.rows import Rows
from registry.signature import Input, Output, Signature
from service import telemetry
from service.prediction_log import log_files, recorder
from service.prediction_log.recorder import Recorder, is_prediction_id, is_sampled
from service.runtime.snapshot import SnapshotLog
from tests.service.prediction_log.calls import LOG, inputs, loaded, prediction_id_of, read, simple_call

LOADED = loaded()


def record(target: Recorder, *numbers: int, settings: SnapshotLog = LOG, rows: int = 1) -> None:
    for number in numbers:
        call = simple_call(number, rows=rows)
        target.record(settings, LOADED, call.id, "champion", b"order-7", call.rows, call.outputs)


def counted(counter: Any, *labels: str) -> float:
    value: float = counter.labels(*labels)._value.get()
    return value


def dropped(reason: str) -> float:
    return counted(telemetry.DROPPED_ROWS, "m", reason)


@pytest.fixture
def without_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls stay in the queue until a test calls `flush`."""
    monkeypatch.setattr(Recorder, "_start", lambda self: None)


def test_flush_writes_every_call_once(tmp_path: Path) -> None:
    target = Recorder(tmp_path)
    record(target, *range(1, 1001))
    target.flush()
    record(target, 1001, 1002)
    target.close()
    rows = read(tmp_path)
    assert sorted(inputs(rows)) == list(range(1, 1003))
    assert {row["output.value"] / row["input.x"] for row in rows} == {2.0}
    assert {(row["alias"], row["request_id"]) for row in rows} == {("champion", "order-7")}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released once for each file that a recorder wrote."""
    semaphore, write = threading.Semaphore(0), Recorder._write_file

    def write_and_release(self: Recorder, *arguments: Any) -> None:
        write(self, *arguments)
        semaphore.release()

    monkeypatch.setattr(Recorder, "_write_file", write_and_release)
    return semaphore


def test_the_thread_writes_without_a_flush_and_wakes_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: threading.Semaphore
) -> None:
    monkeypatch.setattr(recorder, "FLUSH_S", 0.0)
    target = Recorder(tmp_path)
    for number in (1, 2):
        record(target, number)
        assert written.acquire(timeout=30)
    target.close()
    assert inputs(read(tmp_path)) == [1, 2]


def test_a_file_is_written_early_when_many_bytes_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: threading.Semaphore
) -> None:
    monkeypatch.setattr(recorder, "FLUSH_S", 3600.0)
    monkeypatch.setattr(recorder, "FLUSH_BYTES", 10_000)
    target = Recorder(tmp_path)
    record(target, *range(1, 501))
    assert written.acquire(timeout=30)
    target.close()
    assert sorted(inputs(read(tmp_path))) == list(range(1, 501))


def test_chunks_that_the_event_loop_joins_are_written_with_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_thread: None
) -> None:
    monkeypatch.setattr(recorder, "JOINED_BYTES", 10 * recorder.CALL_BYTES)
    target = Recorder(tmp_path)
    target._can_join = True
    record(target, *range(1, 26))
    record(target, 26, rows=5000)
    assert (len(target._joined), len(target._calls), len(target._large_calls)) == (2, 5, 1)
    target.flush()
    rows = inputs(read(tmp_path))
    assert rows == [*range(1, 26), *[26] * 5000]


def test_a_full_queue_drops_calls_and_counts_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_thread: None
) -> None:
    monkeypatch.setattr(recorder, "QUEUE_BYTES", 10 * recorder.CALL_BYTES)
    target, before = Recorder(tmp_path), dropped("queue_full")
    record(target, *range(1, 31), rows=3)
    target.flush()
    rows = read(tmp_path)
    assert dropped("queue_full") - before + len(rows) == 90
    assert inputs(rows)[0] == 1
    assert len(rows) < 40
    record(target, 31)
    target.flush()
    assert inputs(read(tmp_path))[-1] == 31, "it records again once there is room"


def test_texts_fill_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_thread: None) -> None:
    monkeypatch.setattr(recorder, "QUEUE_BYTES", 100_000)
    signature = Signature("regression", (Input("s", "string"),), (Output("value", "float64", (-1,)),))
    target, before = Recorder(tmp_path), dropped("queue_full")
    rows = Rows(columns=(np.array(["a" * 60_000], object),))
    for number in (1, 2, 3):
        identifier = prediction_id_of(number)
        target.record(LOG, loaded(1, signature), identifier, None, None, rows, {"value": np.array([1.0])})
    assert dropped("queue_full") - before == 1


def test_rows_that_cannot_be_written_are_counted_and_logged_once(
    tmp_path: Path, without_thread: None
) -> None:
    (tmp_path / "m.7").write_text("not a directory")
    target, before = Recorder(tmp_path), dropped("not_written")
    with structlog.testing.capture_logs() as logs:
        for number in (1, 2, 3):
            record(target, number)
            target.flush()
            target._report()
    assert dropped("not_written") - before == 3
    events = [entry for entry in logs if entry["event"] == "prediction_log.dropped"]
    assert [(entry["rows"], entry["reason"]) for entry in events] == [(1, "not_written")]
    assert "m.7" in events[0]["error"]


def test_the_sample_depends_on_the_id_alone_and_has_its_share(tmp_path: Path, without_thread: None) -> None:
    ids = [prediction_id_of(number) for number in range(20_000)]
    for share in (0.01, 0.1, 0.5):
        sampled = [i for i in ids if is_sampled(i, share)]
        assert abs(len(sampled) / len(ids) - share) < 5 * (share * (1 - share) / len(ids)) ** 0.5
    assert not any(is_sampled(i, 0.0) for i in ids)
    assert all(is_sampled(i, 1.0) for i in ids)
    target = Recorder(tmp_path)
    record(target, *range(1, 1001), settings=SnapshotLog(LOG.model_id, 0.1))
    target.flush()
    assert {row["id"] for row in read(tmp_path)} == {i for i in ids[1:1001] if is_sampled(i, 0.1)}


def test_ids_that_the_server_makes_are_prediction_ids() -> None:
    assert is_prediction_id(telemetry.make_id("pred"))
    assert not is_prediction_id(telemetry.make_id("req"))


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from service.prediction_log.recorder import Recorder
    from tests.service.prediction_log.test_recorder import record

    target = Recorder(Path(sys.argv[1]))
    record(target, *range(1, 1001))
    target.flush()
    record(target, *range(1001, 2001))
    partial = next(Path(sys.argv[1]).glob("m.7/1/*.parquet"))
    partial.with_name(f".{partial.name}.partial").write_bytes(partial.read_bytes()[:100])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_only_what_it_has_not_written(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    process = subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": str(Path.cwd())})
    assert process.returncode == -signal.SIGKILL
    assert inputs(read(tmp_path)) == list(range(1, 1001))
    (directory,) = log_files.version_directories(tmp_path / "m.7").values()
    log_files.delete_partial_files(directory, older_than_s=-1)
    assert [path.suffix for path in directory.iterdir()] == [".parquet"]
