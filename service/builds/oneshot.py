"""One build in one child: start it, wait with a time limit, and turn whatever happens into a verdict."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import msgspec

from registry.build.job import BuildJob, Built
from service.builds.forkserver import Forked, ForkServer
from service.builds.messages import BuildBroke, BuildDone
from service.runtime import wire

BEAT_S = 3.0
SEND_S = 10.0


class Lost(Exception):
    """The build ended without a verdict, perhaps through no fault of the model: try again."""


def build(forks: ForkServer, job: BuildJob, timeout_s: float, beat: Callable[[], None]) -> Built:
    """Have a child build `job`. `beat` is called every few seconds; what it raises ends the build.

    A model that takes too long, too much memory, or crashes the child is rejected with that reason.
    Raises `Lost` when the child was killed from outside, and `Unavailable` when none can be started.
    """
    child = forks.fork("build")
    try:
        until = time.monotonic() + timeout_s
        wire.send(child.channel, job, time.monotonic() + SEND_S)
        while not _answered(child, min(until, time.monotonic() + BEAT_S)):
            if time.monotonic() >= until:
                return rejected(f"the build was ended after {timeout_s:g} s (TRIVIUM_BUILD_TIMEOUT_S)")
            beat()
        return _verdict(wire.receive(child.channel, BuildDone | BuildBroke, until), job)
    except TimeoutError:
        return rejected("the build's process stopped in the middle of its answer")
    except wire.Broken as broken:
        return _post_mortem(child.end(), job, str(broken))
    finally:
        child.end()


def rejected(reason: str) -> Built:
    return Built(state="rejected", report={"reason": reason})


def _answered(child: Forked, deadline: float) -> bool:
    """Wait until the child says something, or ends. False at the deadline."""
    try:
        wire.await_message(child.channel, deadline)
    except TimeoutError:
        return False
    return True


def _verdict(message: BuildDone | BuildBroke, job: BuildJob) -> Built:
    if isinstance(message, BuildDone):
        try:
            return msgspec.json.decode(message.built, type=Built)
        except msgspec.MsgspecError as error:
            return rejected(f"the build's answer cannot be read: {error}")
    if message.memory:
        return rejected(_memory("the build needs more memory than it may use", job))
    return rejected(f"the build failed: {message.error}")


def _post_mortem(code: int | None, job: BuildJob, how: str) -> Built:
    """The verdict on a child that ended, or sent nonsense, instead of answering."""
    if code is None:
        raise Lost("the build template died, and the build with it")
    if code == -signal.SIGKILL:
        raise Lost(_memory("the build's process was killed, most likely for want of memory", job))
    if code < 0:
        return rejected(_memory(f"the build's process crashed with {signal.Signals(-code).name}", job))
    return rejected(f"the build's process ended with exit code {code} and no answer ({how})")


def _memory(what: str, job: BuildJob) -> str:
    return f"{what}; the limit is {job.memory_mb} MB (TRIVIUM_BUILD_MEMORY_MB)"
