"""The template: a process with all libraries imported and no secrets, which forks children on command.

`python -m service.builds.template FD SERVER` serves the socket `FD` that it inherits from the process
`SERVER`. Commands arrive one at a time and each is answered; `Fork` comes with a file descriptor that becomes
the child's only one. The template has a single thread (which makes forking safe), opens no file and loads no
model. It ends with all its children when the server's end of the socket closes.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket
import sys
import traceback
import types
from typing import NoReturn

from service.builds.process_signals import end_with_parent, outlive_parent
from service.builds.protocol import ChildEnded, EndChild, Fork, Forked, Role
from service.runtime import kernel_code, message_channel
from service.runtime.message_channel import ChannelBroken

PRELOAD: tuple[str, ...] = (
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
    end_with_parent(int(sys.argv[2]))  # the imports take seconds, during which no socket is read
    gc.disable()  # during the imports, whose objects are not garbage
    for module in PRELOAD:
        importlib.import_module(module)
    _load_kernel()
    gc.collect()
    gc.freeze()  # a collection in a child does not write to, and so does not copy, the shared objects
    gc.enable()
    outlive_parent()
    with contextlib.suppress(ChannelBroken):  # the server ended meanwhile
        message_channel.send(control, Forked(0))
        serve(control)


def _load_kernel() -> None:
    """Load the kernel for tables of nodes, for all children. Without a file, compile it and write the file.

    Without it, builds give the reason why a version has no table.
    """
    try:
        kernel_code.load_or_compile()
    except Exception:  # numba and LLVM do not support every machine
        traceback.print_exc()


def serve(control: socket.socket) -> None:
    """Answer commands until the server ends; then end every child."""
    children: set[int] = set()
    while True:
        try:
            command, descriptor = _receive_command(control)
            if isinstance(command, Fork):
                pid = _fork(command.role, descriptor)
                children.add(pid)
                message_channel.send(control, Forked(pid))
            elif command.pid in children:
                children.remove(command.pid)
                message_channel.send(control, ChildEnded(_end(command.pid)))
            else:
                message_channel.send(control, ChildEnded(0))
        except ChannelBroken:
            for pid in children:
                _end(pid)
            return


def _receive_command(control: socket.socket) -> tuple[Fork | EndChild, int]:
    """Return a command and the descriptor that arrived with its first byte, or -1."""
    size = message_channel.HEADER.size
    header, descriptors, _flags, _address = socket.recv_fds(control, size, 1)
    if len(header) < size:
        raise ChannelBroken("the server has ended")
    (length,) = message_channel.HEADER.unpack(header)
    body = control.recv(length, socket.MSG_WAITALL)
    return message_channel.decode(bytearray(body), Fork | EndChild), next(iter(descriptors), -1)


def _fork(role: Role, descriptor: int) -> int:
    template = os.getpid()
    pid = os.fork()
    if pid == 0:
        _run_child(role, descriptor, template)
    os.close(descriptor)
    return pid


def _run_child(role: Role, descriptor: int, template: int) -> NoReturn:
    """In the child: detach from the template, run the role, and exit without returning."""
    code = 1
    try:
        os.setsid()  # its own process group, so that the processes it starts end with it
        end_with_parent(template)
        _close_all_except(descriptor)
        # A pickle's __main__ is its author's script. This module must not be mistaken for it.
        sys.modules["__main__"] = types.ModuleType("__main__")
        from service.builds import child_roles  # `PRELOAD` imported it, after `end_with_parent`

        with socket.socket(fileno=descriptor) as channel:
            child_roles.ROLES[role](channel)
        code = 0
    except ChannelBroken:
        code = 0  # the server has closed the channel and expects no answer
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _close_all_except(descriptor: int) -> None:
    for opened in map(int, os.listdir("/dev/fd")):  # noqa: PTH208 - Path would leave one more open
        if opened > 2 and opened != descriptor:
            with contextlib.suppress(OSError):
                os.close(opened)


def _end(pid: int) -> int:
    # A late kill does not change the exit status of a child that has ended by itself.
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    main()
