"""`trivium` for shells that run it many times: each command is a fork of one process that has imported it.

`python -m tests.harness.forked_commands ADDRESS` is that process; it listens on a Unix socket. `PROGRAM`
sends it arguments, directory, environment and standard streams, and exits with the code of the command.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TRIVIUM = Path(sys.executable).with_name("trivium")
ROOT = Path(__file__).parents[2]
SIZE_BYTES = 4
PROGRAM = """#!{python} -IS
import json, os, socket, sys

connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(connection, [len(call).to_bytes({size_bytes}, "big")], [0, 1, 2])
connection.sendall(call)
sys.exit(int(connection.recv(16) or 1))  # nothing is received from a command that was killed
"""


@contextmanager
def forked_trivium() -> Iterator[Path]:
    """A program that does what `trivium` does, while the block runs."""
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket must be short
        address, program = Path(folder) / "socket", Path(folder) / "trivium"
        program.write_text(PROGRAM.format(python=sys.executable, address=str(address), size_bytes=SIZE_BYTES))
        program.chmod(0o755)
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(address)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield program
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


def main(address: str) -> None:
    import service.cli
    import service.client  # noqa: F401  # what commands import when they run

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            code = _run(connection)
            connection.sendall(str(code).encode())
            os._exit(0)
        connection.close()


def _run(connection: socket.socket) -> int:
    """Run the command of a connection in this process and return its exit code."""
    size, streams, _, _ = socket.recv_fds(connection, SIZE_BYTES, 3)
    with connection.makefile("rb") as file:
        arguments, directory, environment = json.loads(file.read(int.from_bytes(size, "big")))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(TRIVIUM), *arguments]
    try:
        runpy.run_path(str(TRIVIUM), run_name="__main__")
    except SystemExit as end:
        sys.stdout.flush()
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main(sys.argv[1])
