"""Isolated models in real children: answers, rejected rows, deadlines, crashes and restarts."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from registry.errors import DeadlineExceeded, Invalid, Unavailable
from registry.rows import Rows
from registry.signature import Input, Output, Signature
from service.builds.forkserver import ChildProcess, ForkServer
from service.compiler.signature.estimator import EstimatorRuntime
from service.runtime import isolated_runtime
from service.runtime.isolated_runtime import IsolatedRuntime, Isolation
from service.runtime.row_refusals import RowScorer
from tests.service.builds.misbehaving_models import AllocatesTooMuch, MisbehavesByFirstValue, SlowToLoad
from tests.service.builds.processes import alive, wait_for_end

ROOT = Path(isolated_runtime.__file__).parents[2]
MEMORY_MB = 2048
NUMBERS = Signature("regression", (Input("a", "float64"),), (Output("value", "float64", (-1,)),))
SLEEP_ROWS, KILL_ROWS, REJECTED_ROWS, ERROR_ROWS, PRINT_ROWS = (
    Rows(matrix=np.array([[-float(n)]])) for n in range(1, 6)
)
VALID_ROWS = Rows(matrix=np.array([[7.0]]))

Start = Callable[..., IsolatedRuntime]


@pytest.fixture
def spawned() -> list[ChildProcess]:
    """Every child that was started, in order."""
    return []


@pytest.fixture
def start(shared_forks: ForkServer, spawned: list[ChildProcess], tmp_path: Path) -> Iterator[Start]:
    """Return a function that saves a model and serves it in a child of its own."""
    started: list[IsolatedRuntime] = []

    def fork() -> ChildProcess:
        spawned.append(shared_forks.fork("isolated"))
        return spawned[-1]

    def start(model: Any, signature: Signature = NUMBERS, deadline_s: float = 20.0) -> IsolatedRuntime:
        artifact = tmp_path / "model.joblib"
        joblib.dump(model, artifact)
        started.append(IsolatedRuntime(Isolation(fork, MEMORY_MB, deadline_s), artifact, signature))
        return started[-1]

    yield start
    for runtime in started:
        runtime.close()
    for child in spawned:
        child.end()


def value(runtime: IsolatedRuntime, rows: Rows = VALID_ROWS) -> Any:
    return runtime.run(rows)["value"].tolist()


def test_a_forest_answers_as_the_estimator_does(start: Start) -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(300, 4))
    y = np.where(X[:, 0] + X[:, 1] > 0, "yes", "nö")
    model = RandomForestClassifier(10, random_state=0).fit(X, y)
    signature = Signature(
        "classification",
        tuple(Input(f"x{i}", "float64") for i in range(4)),
        (
            Output("label", "string", (-1,), classes=("nö", "yes")),
            Output("probabilities", "float64", (-1, 2), classes=("nö", "yes")),
        ),
    )
    runtime = start(model, signature)
    rows = Rows(matrix=random.normal(size=(1000, 4)))
    outputs, expected = runtime.run(rows), EstimatorRuntime(model, signature).run(rows)
    assert outputs["label"].tolist() == expected["label"].tolist()
    np.testing.assert_array_equal(outputs["probabilities"], expected["probabilities"])


def test_a_pipeline_of_strings_and_missing_values_answers_as_the_estimator_does(start: Start) -> None:
    frame = pd.DataFrame({"colour": ["red", "blue", None, "red"], "size": [1.0, np.nan, 3.0, 4.0]})
    model = make_pipeline(
        make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore"), ["colour"]), (SimpleImputer(), ["size"])
        ),
        LinearRegression(),
    ).fit(frame, [1.0, 2.0, 3.0, 4.0])
    signature = Signature(
        "regression",
        (Input("colour", "string", nullable=True), Input("size", "float64", nullable=True)),
        NUMBERS.outputs,
    )
    rows = Rows(columns=(np.array(["blue", None, "grün"], object), np.array([2.0, np.nan, 1.0])))
    expected = EstimatorRuntime(model, signature).run(rows)
    np.testing.assert_array_equal(start(model, signature).run(rows)["value"], expected["value"])


def test_rows_that_the_model_rejects_are_invalid_with_the_models_message(start: Start) -> None:
    runtime = start(MisbehavesByFirstValue().fit([[0.0]], [0.0]))
    pid = runtime.pid
    with pytest.raises(Invalid, match="this model rejects -3"):
        runtime.run(REJECTED_ROWS)
    assert value(runtime) == [7.0]
    assert runtime.pid == pid


def test_a_lookup_that_fails_is_a_refusal_of_the_rows(start: Start) -> None:
    runtime = start(MisbehavesByFirstValue().fit([[0.0]], [0.0]))
    with pytest.raises(Invalid, match="refuses these rows: IndexError: list index out of range"):
        runtime.run(Rows(matrix=np.array([[-6.0]])))


@pytest.mark.parametrize(
    ("value", "reason"),
    [(-2.0, "process ended during the call"), (-4.0, "RuntimeError: this model fails for -4")],
)
def test_a_row_that_ends_the_process_or_fails_is_found_among_others(
    start: Start, value: float, reason: str
) -> None:
    runtime = start(MisbehavesByFirstValue().fit([[0.0]], [0.0]))
    scored = RowScorer(runtime.run).run(Rows(matrix=np.array([[value], [7.0], [8.0]])), lambda: None)
    assert list(scored.refused) == [0]
    assert scored.refused[0].message.startswith("the model fails for this row")
    assert reason in scored.refused[0].message
    assert scored.outputs is not None
    assert scored.outputs["value"].tolist() == [7.0, 8.0]


def test_a_model_that_fails_is_unavailable_and_its_process_keeps_running(start: Start) -> None:
    runtime = start(MisbehavesByFirstValue().fit([[0.0]], [0.0]))
    pid = runtime.pid
    with pytest.raises(Unavailable, match="RuntimeError: this model fails for -4"):
        runtime.run(ERROR_ROWS)
    assert value(runtime) == [7.0]
    assert runtime.pid == pid


def test_output_of_a_model_on_stdout_is_discarded(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    assert value(start(MisbehavesByFirstValue().fit([[0.0]], [0.0])), PRINT_ROWS) == [-5.0]
    assert capfd.readouterr().out == ""


def test_a_call_that_exceeds_the_deadline_ends_the_process(start: Start) -> None:
    runtime = start(MisbehavesByFirstValue().fit([[0.0]], [0.0]), deadline_s=1.0)
    first = runtime.pid
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="within 1 s"):
        runtime.run(SLEEP_ROWS)
    assert time.monotonic() - began < 3.0
    assert first is not None
    assert wait_for_end(first)
    assert runtime.pid is None
    assert value(runtime) == [7.0]


def test_the_deadline_includes_the_wait_for_other_calls(start: Start) -> None:
    runtime = start(MisbehavesByFirstValue().fit([[0.0]], [0.0]), deadline_s=1.0)
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(runtime.run, SLEEP_ROWS), threads.submit(runtime.run, SLEEP_ROWS)]
        began = time.monotonic()
        assert all(isinstance(call.exception(timeout=10), DeadlineExceeded) for call in calls)
        assert time.monotonic() - began < 3.0


def test_a_process_that_dies_during_a_call_is_replaced_at_the_next(start: Start) -> None:
    runtime = start(MisbehavesByFirstValue().fit([[0.0]], [0.0]))
    first = runtime.pid
    with pytest.raises(Unavailable, match="ended during the call"):
        runtime.run(KILL_ROWS)
    assert value(runtime) == [7.0]
    assert runtime.pid != first


def test_a_process_killed_between_calls_fails_no_call(start: Start) -> None:
    runtime = start(MisbehavesByFirstValue().fit([[0.0]], [0.0]))
    assert runtime.pid is not None
    os.kill(runtime.pid, signal.SIGKILL)
    assert wait_for_end(runtime.pid)
    assert value(runtime) == [7.0]


@pytest.mark.parametrize("rows", [1, 1 << 20])  # sent at once, and in several parts
def test_a_process_killed_before_it_read_the_call_fails_no_call(
    start: Start, spawned: list[ChildProcess], rows: int
) -> None:
    runtime = start(MisbehavesByFirstValue().fit([[0.0]], [0.0]))
    os.kill(spawned[0].pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        calling = threads.submit(value, runtime, Rows(matrix=np.full((rows, 1), 7.0)))
        while not _unread(spawned[0].channel):
            pass  # until the call is in the buffer
        os.kill(spawned[0].pid, signal.SIGKILL)
        assert calling.result(timeout=20) == [7.0] * rows
    assert len(spawned) == 2


def _unread(channel: socket.socket) -> bool:
    """Whether data was sent that the other end has not read."""
    return any(fcntl.ioctl(channel, termios.TIOCOUTQ, bytes(4)))


def test_the_message_about_a_dead_process_contains_no_system_numbers(start: Start) -> None:
    with pytest.raises(Unavailable) as raised:
        start(MisbehavesByFirstValue().fit([[0.0]], [0.0])).run(KILL_ROWS)
    assert str(raised.value) == "the model's process ended during the call"


def test_a_model_that_always_kills_its_process_is_restarted_with_a_pause(
    start: Start, spawned: list[ChildProcess]
) -> None:
    runtime = start(MisbehavesByFirstValue().fit([[0.0]], [0.0]))
    for _ in range(2):
        with pytest.raises(Unavailable, match="ended during the call"):
            runtime.run(KILL_ROWS)
    with pytest.raises(Unavailable, match="keeps dying"):
        runtime.run(VALID_ROWS)
    assert len(spawned) == 2


def test_two_threads_each_get_their_own_answers(start: Start) -> None:
    runtime = start(MisbehavesByFirstValue().fit([[0.0]], [0.0]))

    def predict(n: int) -> bool:
        return bool(value(runtime, Rows(matrix=np.full((3, 1), float(n)))) == [float(n)] * 3)

    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(predict, range(200)))


def test_a_model_that_cannot_be_loaded_is_unavailable_with_the_reason(start: Start, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"cannot be loaded: .*Memory"):
        start(AllocatesTooMuch().fit([[0.0]], [0.0]))


def test_a_load_that_takes_too_long_is_ended(
    start: Start, spawned: list[ChildProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated_runtime, "MAX_LOAD_S", 0.5)
    with pytest.raises(Unavailable, match=r"loading took more than 0\.5 s"):
        start(SlowToLoad().fit([[0.0]], [0.0]))
    assert not alive(spawned[0].pid)


def test_closing_ends_the_process_and_wakes_the_call_in_flight(
    start: Start, spawned: list[ChildProcess]
) -> None:
    runtime = start(MisbehavesByFirstValue().fit([[0.0]], [0.0]))
    entered = threading.Event()

    def call() -> None:
        entered.set()
        runtime.run(SLEEP_ROWS)

    with ThreadPoolExecutor(1) as threads:
        calling = threads.submit(call)
        entered.wait()
        runtime.close()
        assert isinstance(calling.exception(timeout=5), Unavailable)
    assert not alive(spawned[0].pid)
    with pytest.raises(Unavailable, match="unloaded"):
        runtime.run(VALID_ROWS)


def test_bytes_is_the_private_memory_of_the_process(start: Start) -> None:
    runtime = start(MisbehavesByFirstValue().fit([[0.0]], [0.0]))
    small = runtime.bytes
    assert 0 < small < 200 << 20
    heavy = MisbehavesByFirstValue().fit([[0.0]], [0.0])
    heavy.ballast_ = np.random.default_rng(0).bytes(64 << 20)
    assert start(heavy).bytes > small + (60 << 20)
    runtime.close()
    assert runtime.bytes == 0


def test_the_server_never_loads_the_model() -> None:
    code = "import sys, service.builds.supervisor; print('sklearn' in sys.modules, 'joblib' in sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == ["False", "False"]
