"""The template without its libraries, which take seconds: for tests of processes that build nothing.

A child that gets the first request for an artifact writes its process id beside the artifact and waits until
its channel is closed. A child that gets a later one rejects it. Isolated models and fits only wait.
"""

from __future__ import annotations

import os
import socket
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from registry.vocabulary import REJECTED
from service import builds
from service.builds import template
from service.builds.protocol import BUILD, EXPORT, ChildResult, OneShotRole
from service.runtime import message_channel

NAME = "tests.service.builds.small_template"
REASON = "it was requested before"


def pid_file(artifact: str | Path) -> Path:
    return Path(f"{artifact}.pid")


def run_once(role: OneShotRole[Any, Any], channel: socket.socket) -> None:
    file = pid_file(message_channel.receive(channel, role.request).artifact)
    if file.exists():
        answer = role.result(state=REJECTED, report={"reason": REASON})
        message_channel.send(channel, ChildResult(msgspec.json.encode(answer)))
        return
    partial_file = Path(f"{file}.part")
    partial_file.write_text(str(os.getpid()))
    partial_file.rename(file)
    wait(channel)


def wait(channel: socket.socket) -> None:
    channel.recv(1)


if __name__ == "__main__":
    roles = ModuleType("service.builds.child_roles")
    roles.ROLES = {  # type: ignore[attr-defined]
        "build": partial(run_once, BUILD),
        "export": partial(run_once, EXPORT),
        "fit": wait,
        "isolated": wait,
    }
    sys.modules[roles.__name__] = builds.child_roles = roles
    template.PRELOAD = ()
    template.main()
