from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository.tree import ROOT


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_without_chromium_passes_and_says_what_it_left_out(tmp_path: Path, workers: str) -> None:
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_page.py").write_text(
        "def test_shown(chromium_path): raise AssertionError\n"
        "def test_clicked(chromium_path): raise AssertionError\n"
        "def test_counted(): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-p", "xdist", "-n", workers],
        cwd=tmp_path,
        env={**os.environ, "PATH": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    *_, loud, closing = done.stdout.splitlines()
    assert loud.startswith("NOT RUN for want of Chromium: 2 in test_page.py.")
    assert "apt-get install chromium" in loud
    assert "1 passed, 2 skipped" in closing


def test_the_browser_is_a_program_that_can_be_run(chromium_path: str) -> None:
    assert os.access(chromium_path, os.X_OK)
