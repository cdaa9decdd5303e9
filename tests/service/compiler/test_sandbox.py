"""The limits of a child, tried in a child."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.compiler import sandbox

ROOT = Path(__file__).parents[3]


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_a_confined_process_gets_a_memory_error_and_lives() -> None:
    code = """
from service.compiler.sandbox import confine
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
from service.compiler.sandbox import confine
confine(300)
print(resource.getrlimit(resource.RLIMIT_CORE))
"""
    assert run(code) == "(0, 0)"


@pytest.mark.parametrize(
    ("error", "said"),
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
        (ValueError("odd"), "the build failed: ValueError: odd"),
    ],
)
def test_why_a_build_failed_names_its_limit_where_that_may_be_it(error: Exception, said: str) -> None:
    assert sandbox.explain_failure("build", error, 400) == said
