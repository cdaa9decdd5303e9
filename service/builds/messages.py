"""What the server says to the template and to children that build, export and fit, and what they answer."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["build", "export", "fit", "isolated"]


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


class Done(msgspec.Struct, frozen=True, tag=True):
    """From a child that builds, exports or fits: the verdict, as JSON of `Built`, `Exported` or `Fitted`."""

    verdict: bytes


class Broke(msgspec.Struct, frozen=True, tag=True):
    """From a child that builds, exports or fits: it ended by an exception, which is no verdict of its own."""

    error: str
    memory: bool = False  # the exception was a MemoryError
