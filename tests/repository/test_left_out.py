"""Tests that cannot be run here are left out aloud."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository.tree import ROOT


def last_lines(folder: Path, workers: str, test_file: str, **env: str) -> list[str]:
    """The last two lines of a run of this one file."""
    shutil.copy(ROOT / "tests/conftest.py", folder)
    (folder / "test_page.py").write_text(test_file)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-p", "xdist", "-n", workers],
        cwd=folder,
        env={**os.environ, **env, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()[-2:]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_without_chromium_passes_and_says_what_it_left_out(tmp_path: Path, workers: str) -> None:
    loud, closing = last_lines(
        tmp_path,
        workers,
        "def test_shown(chromium_path): raise AssertionError\n"
        "def test_clicked(chromium_path): raise AssertionError\n"
        "def test_counted(): pass\n",
        PATH="",
    )
    assert loud.startswith("NOT RUN for want of Chromium: 2 in test_page.py.")
    assert "apt-get install chromium" in loud
    assert "1 passed, 2 skipped" in closing


NO_TENSORFLOW = "import sys\nsys.modules['tensorflow'] = None\n"


def test_a_run_without_tensorflow_says_which_tests_it_left_out(tmp_path: Path) -> None:
    test_file = (
        f"{NO_TENSORFLOW}def test_fitted(tensorflow_is_there): raise AssertionError\ndef test_(): pass\n"
    )
    loud, closing = last_lines(tmp_path, "0", test_file)
    assert loud.startswith("NOT RUN for want of TensorFlow: 1 in test_page.py.")
    assert "scripts/setup --keras" in loud
    assert "1 passed, 1 skipped" in closing


def test_a_run_without_tensorflow_says_which_files_it_left_out(tmp_path: Path) -> None:
    test_file = (
        f"{NO_TENSORFLOW}from conftest import need_tensorflow\n"
        "need_tensorflow(allow_module_level=True)\n"
        "import tensorflow\n"
    )
    (tmp_path / "test_other.py").write_text("def test_(): pass\n")
    loud, closing = last_lines(tmp_path, "0", test_file)
    assert loud.startswith("NOT RUN for want of TensorFlow: 1 in test_page.py.")
    assert "1 passed, 1 skipped" in closing


def test_the_browser_is_a_program_that_can_be_run(chromium_path: str) -> None:
    assert os.access(chromium_path, os.X_OK)
