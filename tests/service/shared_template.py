"""One build template for all tests of a process that do not kill it: its start takes seconds."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
from functools import cache

from registry.errors import Unavailable
from service.builds.forkserver import ChildProcess, ForkServer
from service.builds.protocol import Role


@cache
def shared_template() -> ForkServer:
    """The fork server that tests of this process share, with a ready template."""
    forks = ForkServer()
    forks.start()
    atexit.register(forks.stop)
    forks.fork("build").end()
    return forks


class SharedTemplate(ForkServer):
    """Forks from the template that tests share. Stopping it ends its own children, as in a server."""

    def __init__(self) -> None:
        super().__init__()
        self._is_stopped = False
        self._children: list[ChildProcess] = []

    def start(self) -> None:
        pass

    def stop(self, grace_s: float = 2.0) -> None:
        with self._turn:  # no child is forked after this
            self._is_stopped = True
        for child in self._children:
            if not child._ended:  # the thread that waits for it then calls `end`
                for kill in (os.killpg, os.kill):  # it may not have its own process group yet
                    with contextlib.suppress(ProcessLookupError):
                        kill(child.pid, signal.SIGKILL)

    def problem(self) -> str | None:
        return shared_template().problem()

    @property
    def pid(self) -> int | None:
        return shared_template().pid

    def fork(self, role: Role) -> ChildProcess:
        with self._turn:
            if self._is_stopped:
                raise Unavailable("the server is shutting down")
            child = shared_template().fork(role)
            self._children.append(child)
        return child
