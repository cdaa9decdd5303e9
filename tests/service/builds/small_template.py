"""The template without its libraries, which take seconds: for tests of processes that end before they answer.

A child of a build or an export writes its process id beside the artifact when it has its request. Then it
waits, as all other children do from the start, until its channel is closed.
"""

from __future__ import annotations

import os
import socket
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

from registry.build_messages import BuildRequest, ExportRequest
from service import builds
from service.builds import template
from service.runtime import message_channel

NAME = "tests.service.builds.small_template"


def pid_file(artifact: str | Path) -> Path:
    return Path(f"{artifact}.pid")


def wait_with_request(request_type: type[BuildRequest | ExportRequest], channel: socket.socket) -> None:
    file = pid_file(message_channel.receive(channel, request_type).artifact)
    partial_file = Path(f"{file}.part")
    partial_file.write_text(str(os.getpid()))
    partial_file.rename(file)
    wait(channel)


def wait(channel: socket.socket) -> None:
    channel.recv(1)


if __name__ == "__main__":
    roles = ModuleType("service.builds.child_roles")
    roles.ROLES = {  # type: ignore[attr-defined]
        "build": partial(wait_with_request, BuildRequest),
        "export": partial(wait_with_request, ExportRequest),
        "fit": wait,
        "isolated": wait,
    }
    sys.modules[roles.__name__] = builds.child_roles = roles
    template.PRELOAD = ()
    template.main()
