"""Restarts, pauses and measurements of an isolated model, with a clock and a channel in this process."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from registry.errors import Unavailable
from registry.rows import Rows
from registry.signature import Input, Output, Signature
from service.runtime import isolated_protocol, isolated_runtime, message_channel
from service.runtime.isolated_protocol import ModelLoaded, RowOutputs
from service.runtime.isolated_runtime import (
    BACKOFF_S,
    MAX_BACKOFF_S,
    MEASURE_INTERVAL_S,
    IsolatedRuntime,
    Isolation,
)

SIGNATURE = Signature("regression", (Input("a", "float64"),), (Output("value", "float64", (-1,)),))
ROW = Rows(matrix=np.zeros((1, 1)))
DEADLINE_S = 20.0


class Child:
    """The server's end of a channel. What the child sends is sent in advance; then it is at its end."""

    def __init__(self, *messages: object, ended: bool = True) -> None:
        self.channel, self._far_end = socket.socketpair()
        self.pids_read = 0
        for message in messages:
            message_channel.send(self._far_end, message)
        if ended:
            self._far_end.shutdown(socket.SHUT_WR)

    @property
    def pid(self) -> int:
        self.pids_read += 1
        return os.getpid()

    def end(self) -> int | None:
        self.channel.close()
        self._far_end.close()
        return None


class Children:
    """Starts the given children in turn, then children that end while they load the model."""

    def __init__(self, *children: Child) -> None:
        self.remaining, self.started = list(children), 0

    def __call__(self) -> Child:
        self.started += 1
        return self.remaining.pop(0) if self.remaining else Child()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(isolated_runtime, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(message_channel, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def runtime_of(children: Children) -> IsolatedRuntime:
    return IsolatedRuntime(Isolation(children, 100, DEADLINE_S), Path("model"), SIGNATURE)


def answer(value: float = 7.0) -> RowOutputs:
    return RowOutputs({"value": isolated_protocol.pack(np.array([value]))})


def test_the_first_restart_is_immediate_and_pauses_double_up_to_half_a_minute(clock: SimpleNamespace) -> None:
    children = Children(Child(ModelLoaded()))
    runtime = runtime_of(children)
    with pytest.raises(Unavailable, match="ended while it loaded the model"):
        runtime.run(ROW)  # the first child ended between two calls, its successor while it loaded
    assert children.started == 2
    expected = [BACKOFF_S * 2**n for n in range(6)] + [MAX_BACKOFF_S] * 2
    assert expected[:2] == [0.5, 1.0]
    for pause_s in expected:
        started = children.started
        clock.now += pause_s - 0.25
        with pytest.raises(Unavailable, match=r"keeps dying; it is restarted in 0\.2 s"):
            runtime.run(ROW)
        assert children.started == started
        clock.now += 0.25
        with pytest.raises(Unavailable, match="ended while it loaded the model"):
            runtime.run(ROW)
        assert children.started == started + 1


def test_an_answer_ends_the_count_of_crashes(clock: SimpleNamespace) -> None:
    loaded = ModelLoaded()
    children = Children(Child(loaded), Child(loaded, answer()), Child(loaded, answer(8.0)))
    runtime = runtime_of(children)
    assert runtime.run(ROW)["value"].tolist() == [7.0]
    assert runtime.run(ROW)["value"].tolist() == [8.0]  # the third child, without a pause
    assert children.started == 3
    runtime.close()


def test_memory_is_measured_after_the_load_and_at_intervals(clock: SimpleNamespace) -> None:
    child = Child(ModelLoaded(), ended=False)
    runtime = runtime_of(Children(child))
    assert child.pids_read == 1
    for wait_s, measured in ((0.0, 1), (MEASURE_INTERVAL_S, 1), (0.001, 2), (0.0, 2)):
        clock.now += wait_s
        message_channel.send(child._far_end, answer())
        runtime._drop_if_ended = lambda: None  # type: ignore[method-assign]  # the answer waits already
        runtime.run(ROW)
        assert child.pids_read == measured
    assert runtime.bytes > 0
    runtime.close()
    assert runtime.bytes == 0


def test_a_message_of_exactly_the_limit_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = socket.socketpair()
    with first, second:
        length = len(msgspec.msgpack.encode(ModelLoaded()))
        monkeypatch.setattr(message_channel, "MAX_MESSAGE_BYTES", length)
        message_channel.send(first, ModelLoaded())
        assert message_channel.receive(second, ModelLoaded) == ModelLoaded()
        monkeypatch.setattr(message_channel, "MAX_MESSAGE_BYTES", length - 1)
        message_channel.send(first, ModelLoaded())
        with pytest.raises(message_channel.ChannelBroken, match=f"of {length} bytes is longer than"):
            message_channel.receive(second, ModelLoaded)


def test_a_deadline_that_is_now_has_passed(clock: SimpleNamespace) -> None:
    first, second = socket.socketpair()
    with first, second:
        message_channel.send(first, ModelLoaded(), clock.now + 1.0)
        with pytest.raises(TimeoutError):
            message_channel.receive(second, ModelLoaded, clock.now)
        assert message_channel.receive(second, ModelLoaded, clock.now + 1.0) == ModelLoaded()
