"""A virtual environment for each peer in .venv/peers/NAME, from the lock benchmarks/peers/NAME.txt."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "benchmarks" / "peers"
INSTALL_S = 900.0


class InstallationFailed(Exception):
    """A peer's environment cannot be created; the text says why."""


def python_of(name: str) -> Path:
    """Return the interpreter of a peer's environment, which is created when it is missing or outdated."""
    directory, lock = ROOT / ".venv" / "peers" / name, PEERS / f"{name}.txt"
    python, stamp = directory / "bin" / "python", directory / "lock.sha256"
    digest = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest and python.exists():
        return python
    print(f"installing {lock.relative_to(ROOT)}", file=sys.stderr, flush=True)
    uv = shutil.which("uv") or ROOT / ".venv" / "bootstrap" / "bin" / "uv"
    _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, directory])
    sync = ["pip", "sync", "--quiet", "--require-hashes", "--compile-bytecode"]
    _run([uv, *sync, "--python", python, lock])
    stamp.write_text(digest)
    return python


def _run(command: list[str | Path]) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
            env={"UV_SYSTEM_CERTS": "true"} | os.environ,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallationFailed(f"cannot be installed: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"uv ended with {done.returncode}"]
        raise InstallationFailed(f"cannot be installed: {' '.join(lines[-3:])[:300]}")


def locked_version(name: str, package: str) -> str:
    """Return the version of a package in a peer's lock."""
    for line in (PEERS / f"{name}.txt").read_text().splitlines():
        if line.startswith(f"{package}=="):
            return line.split("==")[1].split()[0].rstrip("\\").strip()
    raise KeyError(f"{package} is not in benchmarks/peers/{name}.txt")
