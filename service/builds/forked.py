"""What a forked child does with its channel: build one version, or answer for one isolated model."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable
from pathlib import Path

import msgspec

from registry.build.estimator import Estimator
from registry.build.job import BuildJob
from registry.build.safeload import load
from registry.build.sandbox import confine
from service.builds import child
from service.builds.messages import BuildBroke, BuildDone
from service.runtime import arrays, wire

MOST_CHARACTERS = 500


def build(channel: socket.socket) -> None:
    """One `BuildJob` in, one `BuildDone` or `BuildBroke` out."""
    job = wire.receive(channel, BuildJob)
    try:
        confine(job.memory_mb)
        answer: BuildDone | BuildBroke = BuildDone(msgspec.json.encode(child.build(job)))
    except MemoryError:
        answer = BuildBroke("MemoryError", memory=True)
    except Exception as error:
        answer = BuildBroke(said(error))
    wire.send(channel, answer)


def isolated(channel: socket.socket) -> None:
    """Load the model, then answer calls until the server closes the channel."""
    warnings.simplefilter("ignore")  # said at build time; a line for each call helps nobody
    order = wire.receive(channel, wire.Load)
    try:
        confine(order.memory_mb)
        estimator = Estimator(load(Path(order.artifact)), order.signature)
    except Exception as error:
        wire.send(channel, wire.Failure(said(error)))
        return
    wire.send(channel, wire.Loaded())
    while True:
        wire.send(channel, answer(estimator, wire.receive(channel, wire.Call)))


def answer(estimator: Estimator, call: wire.Call) -> wire.Answer | wire.Refusal | wire.Failure:
    try:
        outputs = estimator.run(arrays.unpack_rows(call))
    except (ValueError, TypeError) as error:
        return wire.Refusal(str(error)[:MOST_CHARACTERS])
    except Exception as error:
        return wire.Failure(said(error))
    return wire.Answer({name: arrays.pack(array) for name, array in outputs.items()})


def said(error: BaseException) -> str:
    """The error without its traceback, whose paths are nobody's business."""
    return f"{type(error).__name__}: {error}"[:MOST_CHARACTERS]


ROLES: dict[str, Callable[[socket.socket], None]] = {"build": build, "isolated": isolated}
