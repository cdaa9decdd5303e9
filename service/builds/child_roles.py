"""What a forked child does with its channel: build or export one version, do a step of a training,
or answer for an isolated version."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from registry.build_records import BuildJob, Built, Exported, ExportJob
from service.builds.messages import Broke, Done
from service.compiler import build as child
from service.compiler import export
from service.compiler.fit import child as fit
from service.compiler.fit.fit_records import Fitted, Step
from service.compiler.safeload import load
from service.compiler.sandbox import confine
from service.compiler.signature.estimator import Estimator
from service.runtime import arrays, child_protocol

MOST_CHARACTERS = 500

Job = TypeVar("Job", BuildJob, ExportJob, Step)


def build(channel: socket.socket) -> None:
    """One `BuildJob` in, one `Done` or `Broke` out."""
    _once(channel, BuildJob, child.build)


def export_(channel: socket.socket) -> None:
    """One `ExportJob` in, one `Done` or `Broke` out."""
    _once(channel, ExportJob, export.export)


def fit_(channel: socket.socket) -> None:
    """One `Step` in, one `Done` or `Broke` out."""
    _once(channel, Step, fit.fit)


def _once(channel: socket.socket, kind: type[Job], work: Callable[[Job], Built | Exported | Fitted]) -> None:
    job: Job = child_protocol.receive(channel, kind)
    try:
        confine(job.memory_mb)
        answer: Done | Broke = Done(msgspec.json.encode(work(job)))
    except MemoryError:
        answer = Broke("MemoryError", memory=True)
    except Exception as error:
        answer = Broke(said(error))
    child_protocol.send(channel, answer)


def isolated(channel: socket.socket) -> None:
    """Load the model, then answer calls until the server closes the channel."""
    warnings.simplefilter("ignore")  # said at build time; a line for each call helps nobody
    order = child_protocol.receive(channel, child_protocol.Load)
    try:
        confine(order.memory_mb)
        estimator = Estimator(load(Path(order.artifact)), order.signature)
    except Exception as error:
        child_protocol.send(channel, child_protocol.Failure(said(error)))
        return
    child_protocol.send(channel, child_protocol.Loaded())
    while True:
        child_protocol.send(channel, answer(estimator, child_protocol.receive(channel, child_protocol.Call)))


def answer(
    estimator: Estimator, call: child_protocol.Call
) -> child_protocol.Answer | child_protocol.Refusal | child_protocol.Failure:
    try:
        outputs = estimator.run(arrays.unpack_rows(call))
    except (ValueError, TypeError) as error:
        return child_protocol.Refusal(str(error)[:MOST_CHARACTERS])
    except Exception as error:
        return child_protocol.Failure(said(error))
    return child_protocol.Answer({name: arrays.pack(array) for name, array in outputs.items()})


def said(error: BaseException) -> str:
    """The error without its traceback, whose paths are nobody's business."""
    return f"{type(error).__name__}: {error}"[:MOST_CHARACTERS]


ROLES: dict[str, Callable[[socket.socket], None]] = {
    "build": build,
    "export": export_,
    "fit": fit_,
    "isolated": isolated,
}
