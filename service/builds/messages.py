"""What the server says to the template and to build children, and what they answer."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["build", "isolated"]


class Fork(msgspec.Struct, frozen=True, tag=True):
    """To the template, together with the file descriptor that becomes the child's channel."""

    role: Role


class End(msgspec.Struct, frozen=True, tag=True):
    """To the template: kill the child if it still runs, reap it, and say how it ended."""

    pid: int


class Started(msgspec.Struct, frozen=True, tag=True):
    """The answer to `Fork`. The first one, with pid 0, says that the template is ready."""

    pid: int


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The answer to `End`; `code` as in `subprocess`: the exit code, or minus the signal."""

    code: int


class BuildDone(msgspec.Struct, frozen=True, tag=True):
    """From a build child: the verdict, as the JSON of a `Built`."""

    built: bytes


class BuildBroke(msgspec.Struct, frozen=True, tag=True):
    """From a build child: it ended by an exception, which is no verdict of the builder's own."""

    error: str
    memory: bool = False  # the exception was a MemoryError
