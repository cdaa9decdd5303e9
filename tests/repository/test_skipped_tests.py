"""Tests that are skipped for a missing program are listed at the end of the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository.tree import ROOT


def last_lines(folder: Path, workers: str, test_file: str, **env: str) -> list[str]:
    """Run one test file with this repository's conftest and return the last two lines of output."""
    shutil.copy(ROOT / "tests/conftest.py", folder)
    (folder / "test_page.py").write_text(test_file)
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-p", "xdist", "-n", workers],
        cwd=folder,
        env={**os.environ, **env, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout.splitlines()[-2:]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_without_chromium_passes_and_lists_the_skipped_tests(tmp_path: Path, workers: str) -> None:
    skip_summary, totals = last_lines(
        tmp_path,
        workers,
        "def test_shown(chromium_path): raise AssertionError\n"
        "def test_clicked(chromium_path): raise AssertionError\n"
        "def test_counted(): pass\n",
        PATH="",
    )
    assert skip_summary.startswith("NOT RUN without Chromium: 2 in test_page.py.")
    assert "apt-get install chromium" in skip_summary
    assert "1 passed, 2 skipped" in totals


HIDE_TENSORFLOW = "import sys\nsys.modules['tensorflow'] = None\n"


def test_a_run_without_tensorflow_lists_the_skipped_tests(tmp_path: Path) -> None:
    test_file = (
        f"{HIDE_TENSORFLOW}def test_fitted(requires_tensorflow): raise AssertionError\ndef test_(): pass\n"
    )
    skip_summary, totals = last_lines(tmp_path, "0", test_file)
    assert skip_summary.startswith("NOT RUN without TensorFlow: 1 in test_page.py.")
    assert "scripts/setup --keras" in skip_summary
    assert "1 passed, 1 skipped" in totals


def test_a_run_without_tensorflow_lists_the_skipped_files(tmp_path: Path) -> None:
    test_file = (
        f"{HIDE_TENSORFLOW}from conftest import require_tensorflow\n"
        "require_tensorflow(allow_module_level=True)\n"
        "import tensorflow\n"
    )
    (tmp_path / "test_other.py").write_text("def test_(): pass\n")
    skip_summary, totals = last_lines(tmp_path, "0", test_file)
    assert skip_summary.startswith("NOT RUN without TensorFlow: 1 in test_page.py.")
    assert "1 passed, 1 skipped" in totals


def test_the_browser_is_an_executable_file(chromium_path: str) -> None:
    assert os.access(chromium_path, os.X_OK)
