"""One build, export or fit in one child: start it, wait with a limit, turn what happens into a verdict."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec

from registry.build_records import BuildJob, Built, Exported, ExportJob
from service.builds.forkserver import Forked, ForkServer
from service.builds.messages import Broke, Done, Role
from service.compiler.fit.fit_records import Fitted, Step
from service.runtime import child_protocol

BEAT_S = 3.0
SEND_S = 10.0

Verdict = TypeVar("Verdict", Built, Exported, Fitted)


class Lost(Exception):
    """The child ended without a verdict, perhaps through no fault of the model: try again."""


def build(forks: ForkServer, job: BuildJob, timeout_s: float, beat: Callable[[], None]) -> Built:
    """Have a child build `job`. `beat` is called every few seconds; what it raises ends the build.

    A model that takes too long, too much memory, or crashes the child is rejected with that reason.
    Raises `Lost` when the child was killed from outside, and `Unavailable` when none can be started.
    """
    return _run(forks, "build", job, Built, timeout_s, beat)


def export(forks: ForkServer, job: ExportJob, timeout_s: float, beat: Callable[[], None]) -> Exported:
    """Have a child export `job`; all else as `build`."""
    return _run(forks, "export", job, Exported, timeout_s, beat)


def fit(forks: ForkServer, step: Step, timeout_s: float, beat: Callable[[], None]) -> Fitted:
    """Have a child do a step of a training; all else as `build`."""
    return _run(forks, "fit", step, Fitted, timeout_s, beat)


def rejected(kind: type[Verdict], reason: str) -> Verdict:
    return kind(state="rejected", report={"reason": reason})


def ended(kind: type[Verdict], reason: str) -> Verdict:
    """Rejected not by the child's own verdict: it took too long, too much memory, or crashed."""
    return kind(state="rejected", report={"reason": reason, "ended": True})


def _run(
    forks: ForkServer,
    role: Role,
    job: BuildJob | ExportJob | Step,
    kind: type[Verdict],
    timeout_s: float,
    beat: Callable[[], None],
) -> Verdict:
    child = forks.fork(role)
    try:
        until = time.monotonic() + timeout_s
        child_protocol.send(child.channel, job, time.monotonic() + SEND_S)
        while not _answered(child, min(until, time.monotonic() + BEAT_S)):
            if time.monotonic() >= until:
                return ended(kind, f"the {role} was ended after {timeout_s:g} s (TRIVIUM_BUILD_TIMEOUT_S)")
            beat()
        message: Done | Broke = child_protocol.receive(child.channel, Done | Broke, until)
    except TimeoutError:
        return rejected(kind, f"the {role}'s process stopped in the middle of its answer")
    except child_protocol.Broken as broken:
        return ended(kind, _post_mortem(child.end(), role, job.memory_mb, str(broken)))
    finally:
        child.end()
    if isinstance(message, Broke):
        return ended(kind, _broke(message, role, job.memory_mb))
    try:
        return msgspec.json.decode(message.verdict, type=kind)
    except msgspec.MsgspecError as error:
        return rejected(kind, f"the {role}'s answer cannot be read: {error}")


def _answered(child: Forked, deadline: float) -> bool:
    """Wait until the child says something, or ends. False at the deadline."""
    try:
        child_protocol.await_message(child.channel, deadline)
    except TimeoutError:
        return False
    return True


def _broke(message: Broke, role: Role, memory_mb: int) -> str:
    if message.memory:
        return _memory(f"the {role} needs more memory than it may use", memory_mb)
    return f"the {role} failed: {message.error}"


def _post_mortem(code: int | None, role: Role, memory_mb: int, how: str) -> str:
    """Why a child ended, or sent nonsense, instead of answering."""
    if code is None:
        raise Lost(f"the build template died, and the {role} with it")
    if code == -signal.SIGKILL:
        raise Lost(_memory(f"the {role}'s process was killed, most likely for want of memory", memory_mb))
    if code < 0:
        return _memory(f"the {role}'s process crashed with {signal.Signals(-code).name}", memory_mb)
    return f"the {role}'s process ended with exit code {code} and no answer ({how})"


def _memory(what: str, memory_mb: int) -> str:
    return f"{what}; the limit is {memory_mb} MB (TRIVIUM_BUILD_MEMORY_MB)"
