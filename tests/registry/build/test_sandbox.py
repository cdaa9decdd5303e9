"""The limits of a child, tried in a child."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_a_confined_process_gets_a_memory_error_and_lives() -> None:
    code = """
from registry.build.sandbox import confine
confine(300)
try:
    b"x" * (500 * 1024 * 1024)
except MemoryError:
    print("refused", len(b"x" * 1024))
"""
    assert run(code) == "refused 1024"


def test_a_confined_process_leaves_no_core() -> None:
    code = """
import resource
from registry.build.sandbox import confine
confine(300)
print(resource.getrlimit(resource.RLIMIT_CORE))
"""
    assert run(code) == "(0, 0)"
