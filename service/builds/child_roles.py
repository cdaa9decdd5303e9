"""The roles of a forked child: one build, export, fit or check, or the calls of an isolated model."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from registry.errors import describe_error
from service.builds.protocol import (
    BUILD,
    CHECK,
    EXPORT,
    FIT,
    ChildResult,
    Crash,
    OneShotRole,
    RequestRecord,
    ResultRecord,
    Role,
)
from service.compiler import build, export, verify
from service.compiler.fit import steps
from service.compiler.safeload import load
from service.compiler.sandbox import confine
from service.compiler.signature.estimator import EstimatorRuntime
from service.runtime import isolated_protocol
from service.runtime.isolated_protocol import (
    LoadModel,
    ModelFailed,
    ModelLoaded,
    RowOutputs,
    RowsRejected,
    RunRows,
)
from service.runtime.message_channel import receive, send

MAX_ERROR_CHARACTERS = 500


def run_once(
    role: OneShotRole[RequestRecord, ResultRecord],
    work: Callable[[RequestRecord], ResultRecord],
    channel: socket.socket,
) -> None:
    """Receive one request, send one `ChildResult` or `Crash`."""
    request: RequestRecord = receive(channel, role.request)
    message: ChildResult | Crash
    try:
        confine(request.memory_mb)
        message = ChildResult(msgspec.json.encode(work(request)))
    except MemoryError:
        message = Crash("MemoryError", memory=True)
    except Exception as error:
        message = Crash(_text(error))
    send(channel, message)


_REFUSALS = (ValueError, TypeError, LookupError, ArithmeticError)
"""Errors that an estimator raises because of the values in the rows."""


def serve_isolated(channel: socket.socket) -> None:
    """Load the model, then answer calls until the server closes the channel."""
    warnings.simplefilter("ignore")  # the build reports warnings; repeating them for each call adds nothing
    order: LoadModel = receive(channel, LoadModel)
    try:
        confine(order.memory_mb)
        estimator = EstimatorRuntime(load(Path(order.artifact)), order.signature)
    except Exception as error:
        send(channel, ModelFailed(_text(error)))
        return
    send(channel, ModelLoaded())
    while True:
        send(channel, _answer(estimator, receive(channel, RunRows)))


def _answer(estimator: EstimatorRuntime, call: RunRows) -> RowOutputs | RowsRejected | ModelFailed:
    try:
        outputs = estimator.run(isolated_protocol.unpack_rows(call))
    except _REFUSALS as error:
        return RowsRejected(_refusal(error))
    except Exception as error:
        return ModelFailed(_text(error))
    return RowOutputs({name: isolated_protocol.pack(array) for name, array in outputs.items()})


def _refusal(error: Exception) -> str:
    """The message of an error about values. A lookup's own text is only the key or the index."""
    is_lookup = isinstance(error, LookupError) or not str(error)
    return (describe_error(error) if is_lookup else str(error))[:MAX_ERROR_CHARACTERS]


def _text(error: Exception) -> str:
    """The error without its traceback, which would reveal paths of the server."""
    return describe_error(error)[:MAX_ERROR_CHARACTERS]


ROLES: dict[Role, Callable[[socket.socket], None]] = {
    "build": partial(run_once, BUILD, build.build_version),
    "export": partial(run_once, EXPORT, export.export_version),
    "fit": partial(run_once, FIT, steps.run),
    "check": partial(run_once, CHECK, verify.verify_runtime),
    "isolated": serve_isolated,
}
