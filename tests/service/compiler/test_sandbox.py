"""The limits of a child process, tested in a child process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.compiler import sandbox

ROOT = Path(__file__).parents[3]


def run(code: str) -> str:
    completed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return completed.stdout.strip()


def test_a_confined_process_survives_a_memory_error() -> None:
    code = """
from service.compiler.sandbox import confine
confine(300)
try:
    b"x" * (500 * 1024 * 1024)
except MemoryError:
    print("refused", len(b"x" * 1024))
"""
    assert run(code) == "refused 1024"


def test_a_confined_process_writes_no_core_dump() -> None:
    code = """
import resource
from service.compiler.sandbox import confine
confine(300)
print(resource.getrlimit(resource.RLIMIT_CORE))
"""
    assert run(code) == "(0, 0)"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "the build needs more memory than its limit of 400 MB (TRIVIUM_BUILD_MEMORY_MB)"),
        (
            SystemError("error return without exception set"),
            "the build failed: SystemError: error return without exception set; it may need more memory than "
            "its limit of 400 MB (TRIVIUM_BUILD_MEMORY_MB)",
        ),
        (
            ImportError("_x.so: failed to map segment from shared object"),
            "the build failed: ImportError: _x.so: failed to map segment from shared object; it may need "
            "more memory than its limit of 400 MB (TRIVIUM_BUILD_MEMORY_MB)",
        ),
        (
            RuntimeError("can't start new thread"),
            "the build failed: RuntimeError: can't start new thread; it may need more memory than its limit "
            "of 400 MB (TRIVIUM_BUILD_MEMORY_MB)",
        ),
        (ValueError("odd"), "the build failed: ValueError: odd"),
    ],
)
def test_the_reason_of_a_failed_build_names_the_memory_limit_where_it_may_be_the_cause(
    error: Exception, reason: str
) -> None:
    assert sandbox.explain_failure("build", error, 400) == reason
