"""One build, export or fit in one child: start the child, wait with a limit, return its result."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import msgspec

from registry import queue
from registry.vocabulary import REJECTED
from service.builds.forkserver import ChildProcess, ForkServer
from service.builds.protocol import ChildResult, Crash, OneShotRole, RequestRecord, ResultRecord
from service.runtime import message_channel
from service.runtime.message_channel import ChannelBroken

BEAT_INTERVAL_S = 0.3 * queue.BUILD_LEASE_S
SEND_S = 10.0
"""Longest time a child may take to read its request."""


class ChildLost(Exception):
    """The child ended without a result, and the model may not be the cause: the task is retried."""


def run(
    forks: ForkServer,
    role: OneShotRole[RequestRecord, ResultRecord],
    request: RequestRecord,
    timeout_s: float,
    beat: Callable[[], None],
) -> ResultRecord:
    """Run `request` in a new child and return its result.

    `beat` is called every few seconds; an exception that it raises ends the child. A model that takes too
    much time or memory, or crashes the child, is rejected with that reason. Raises `ChildLost` when the child
    was killed from outside, and `Unavailable` when no child can be started.
    """
    child = forks.fork(role.name)
    try:
        until = time.monotonic() + timeout_s
        message_channel.send(child.channel, request, time.monotonic() + SEND_S)
        while not _has_answered(child, min(until, time.monotonic() + BEAT_INTERVAL_S)):
            if time.monotonic() >= until:
                return _ended(
                    role, f"the {role.name} was ended after {timeout_s:g} s (TRIVIUM_BUILD_TIMEOUT_S)"
                )
            beat()
        message: ChildResult | Crash = message_channel.receive(child.channel, ChildResult | Crash, until)
    except TimeoutError:
        return rejected(role, f"the {role.name}'s process stopped in the middle of its answer")
    except ChannelBroken as error:
        return rejected(role, _exit_reason(child.end(), role.name, request.memory_mb, str(error)))
    finally:
        child.end()
    if isinstance(message, Crash):
        return _ended(role, _crash_reason(message, role.name, request.memory_mb))
    try:
        return msgspec.json.decode(message.result, type=role.result)
    except msgspec.MsgspecError as error:
        return rejected(role, f"the {role.name}'s answer cannot be read: {error}")


def rejected(role: OneShotRole[RequestRecord, ResultRecord], reason: str) -> ResultRecord:
    return role.result(state=REJECTED, report={"reason": reason})


def _ended(role: OneShotRole[RequestRecord, ResultRecord], reason: str) -> ResultRecord:
    """Rejected without a result of the child: it took too much time or memory, so less work may succeed."""
    return role.result(state=REJECTED, report={"reason": reason, "ended": True})


def _has_answered(child: ChildProcess, deadline: float) -> bool:
    """Wait until the child sends a message or ends. False at the deadline."""
    try:
        message_channel.await_message(child.channel, deadline)
    except TimeoutError:
        return False
    return True


def _crash_reason(crash: Crash, role: str, memory_mb: int) -> str:
    if crash.memory:
        return _with_limit(f"the {role} needs more memory than it may use", memory_mb)
    return f"the {role} failed: {crash.error}"


def _exit_reason(code: int | None, role: str, memory_mb: int, channel_error: str) -> str:
    """Why a child ended, or sent an invalid message, instead of answering. Raises `ChildLost`."""
    if code is None:
        raise ChildLost(f"the build template died, and the {role} with it")
    if code == -signal.SIGKILL:
        message = f"the {role}'s process was killed, most likely because memory ran out"
        raise ChildLost(_with_limit(message, memory_mb))
    if code == -signal.SIGABRT:
        return _with_limit(f"the {role}'s process was aborted, as it is when memory runs out", memory_mb)
    if code < 0:
        return (
            f"the {role}'s process crashed with {signal.Signals(-code).name}: "
            "the model is damaged, or compiled code fails on it"
        )
    return f"the {role}'s process ended with exit code {code} and no answer ({channel_error})"


def _with_limit(message: str, memory_mb: int) -> str:
    return f"{message}; the limit is {memory_mb} MB (TRIVIUM_BUILD_MEMORY_MB)"
