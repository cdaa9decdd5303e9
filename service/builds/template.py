"""The template: a process with everything imported and no secrets, that forks children on command.

`python -m service.builds.template FD SERVER` serves the socket `FD` that it inherits from the process
`SERVER`. Commands come one at a time, `Fork` with a file descriptor that becomes the child's only one, and
each is answered. The template has a single thread (that is what makes forking it safe), opens no file, reads
no model, and ends with all its children when the server's end of the socket closes.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket
import sys
import types
from typing import NoReturn

from service.builds.child_process import end_by_itself, end_with_parent
from service.builds.messages import End, Ended, Fork, Role, Started
from service.runtime import child_protocol

PRELOAD = (
    "service.builds.child_roles",
    "joblib",
    "onnx",
    "onnxruntime",
    "pandas",
    "pyarrow.csv",
    "pyarrow.parquet",
    "scipy.stats",
    "skl2onnx",
    "sklearn.cluster",
    "sklearn.compose",
    "sklearn.decomposition",
    "sklearn.ensemble",
    "sklearn.impute",
    "sklearn.kernel_approximation",
    "sklearn.linear_model",
    "sklearn.model_selection",
    "sklearn.multioutput",
    "sklearn.neighbors",
    "sklearn.neural_network",
    "sklearn.pipeline",
    "sklearn.svm",
)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    end_with_parent(int(sys.argv[2]))  # all this takes seconds, in which it reads no socket
    for module in PRELOAD:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a child does not touch, and so not copy, what all of them share
    end_by_itself()
    with contextlib.suppress(child_protocol.Broken):  # the server ended meanwhile
        child_protocol.send(control, Started(0))
        serve(control)


def serve(control: socket.socket) -> None:
    """Answer commands until the server is gone; then end every child."""
    children: set[int] = set()
    while True:
        try:
            command, descriptor = _next(control)
            if isinstance(command, Fork):
                pid = _fork(command.role, descriptor)
                children.add(pid)
                child_protocol.send(control, Started(pid))
            elif command.pid in children:
                children.remove(command.pid)
                child_protocol.send(control, Ended(_end(command.pid)))
            else:
                child_protocol.send(control, Ended(0))
        except child_protocol.Broken:
            for pid in children:
                _end(pid)
            return


def _next(control: socket.socket) -> tuple[Fork | End, int]:
    """A command and the descriptor that came with its first byte, or -1."""
    header, descriptors, _flags, _address = socket.recv_fds(control, child_protocol.HEADER.size, 1)
    if len(header) < child_protocol.HEADER.size:
        raise child_protocol.Broken("the server is gone")
    (length,) = child_protocol.HEADER.unpack(header)
    body = control.recv(length, socket.MSG_WAITALL)
    return child_protocol.decode(bytearray(body), Fork | End), next(iter(descriptors), -1)


def _fork(role: Role, descriptor: int) -> int:
    template = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(role, descriptor, template)
    os.close(descriptor)
    return pid


def _become(role: Role, descriptor: int, template: int) -> NoReturn:
    """The child: cut off from the template, it does what its role is and never returns."""
    code = 1
    try:
        os.setsid()  # its own group, so that what it starts ends with it
        end_with_parent(template)
        _close_all_but(descriptor)
        # What a pickle finds in __main__ was in its author's script; ours would only look like it.
        sys.modules["__main__"] = types.ModuleType("__main__")
        from service.builds import child_roles  # imported already: the template itself needs none of it

        with socket.socket(fileno=descriptor) as channel:
            child_roles.ROLES[role](channel)
        code = 0
    except child_protocol.Broken:
        code = 0  # the server has closed the channel: nobody waits for an answer
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _close_all_but(descriptor: int) -> None:
    for opened in map(int, os.listdir("/dev/fd")):  # noqa: PTH208 - Path would leave one more open
        if opened > 2 and opened != descriptor:
            with contextlib.suppress(OSError):
                os.close(opened)


def _end(pid: int) -> int:
    # The exit status of a child that has ended by itself is not changed by a late kill.
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    main()
