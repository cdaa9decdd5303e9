"""Processes that tests observe and kill: servers with a supervisor, and their children."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

from service.builds import supervisor

ROOT = Path(supervisor.__file__).parents[2]
SUPERVISOR_CODE = """
import sys, time
from pathlib import Path
from registry import db
from registry.artifacts import Store
from service.builds.forkserver import ForkServer
from service.builds.supervisor import Supervisor
from service.config import Settings
from tests.service.builds import small_template
settings, forks = Settings(home=Path(sys.argv[1])), ForkServer(small_template.NAME)
sessions = db.sessions(db.connect(settings.url))
Supervisor(settings, sessions, Store(settings.blobs), lambda: None, forks).start()
time.sleep(60)
"""


def wait_for_end(pid: int, timeout_s: float = 10.0) -> bool:
    """Wait until a process ends, which need not be a child. Return whether it did."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(descriptor)


def alive(pid: int) -> bool:
    return not wait_for_end(pid, timeout_s=0.0)


def start_supervisor(home: Path) -> subprocess.Popen[bytes]:
    """Start a process that runs a supervisor, whose children do not answer (`small_template`)."""
    return subprocess.Popen([sys.executable, "-c", SUPERVISOR_CODE, str(home)], cwd=ROOT)


def read_when_written(file: Path) -> str:
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline, f"{file.name} was not written"
        time.sleep(0.02)
    return file.read_text()
