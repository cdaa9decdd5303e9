"""Messages between the server, the template, and the children that build, export, fit or check.

The template receives `Fork` and `EndChild` and answers each of them. A one-shot child receives one
request and sends `ChildResult` or `Crash`. The requests and results of each role are the table below;
`child_roles.py` has the functions that the child runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import msgspec

from registry.build_messages import (
    BuildRequest,
    BuildResult,
    ExportRequest,
    ExportResult,
    VerifyRequest,
    VerifyResult,
)
from service.compiler.fit.fit_records import FitResult, FitStep

Role = Literal["build", "export", "fit", "check", "isolated"]

RequestRecord = TypeVar("RequestRecord", BuildRequest, ExportRequest, FitStep, VerifyRequest)
ResultRecord = TypeVar("ResultRecord", BuildResult, ExportResult, FitResult, VerifyResult)


@dataclass(frozen=True, slots=True)
class OneShotRole(Generic[RequestRecord, ResultRecord]):
    """Name, request and result of a one-shot child."""

    name: Role
    request: type[RequestRecord]
    result: type[ResultRecord]


BUILD = OneShotRole("build", BuildRequest, BuildResult)
EXPORT = OneShotRole("export", ExportRequest, ExportResult)
FIT = OneShotRole("fit", FitStep, FitResult)
CHECK = OneShotRole("check", VerifyRequest, VerifyResult)


class Fork(msgspec.Struct, frozen=True, tag=True):
    """To the template, together with the file descriptor that becomes the child's channel."""

    role: Role


class Forked(msgspec.Struct, frozen=True, tag=True):
    """The answer to `Fork`. The template sends one with pid 0 when it is ready."""

    pid: int


class EndChild(msgspec.Struct, frozen=True, tag=True):
    """To the template: kill the child if it still runs, and reap it."""

    pid: int


class ChildEnded(msgspec.Struct, frozen=True, tag=True):
    """The answer to `EndChild`. `code` as in `subprocess`: the exit code, or minus the signal."""

    code: int


class ChildResult(msgspec.Struct, frozen=True, tag=True):
    """From a one-shot child: its result as JSON."""

    result: bytes


class Crash(msgspec.Struct, frozen=True, tag=True):
    """From a one-shot child: an exception ended its work."""

    error: str
    memory: bool = False  # the exception was a MemoryError
