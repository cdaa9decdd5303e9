"""What every test may ask for, and what the run says at its end about tests that could not be run."""

from __future__ import annotations

import importlib.util
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell that runs the tests in the background ignores it, and so would what tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
NO_CHROMIUM = "needs Chromium, which is not on PATH"
NO_TENSORFLOW = "needs TensorFlow, which is not installed"
NO_PREFECT = "needs Prefect, which is not in .venv/prefect"
LACKING = {
    NO_CHROMIUM: ("Chromium", "apt-get install chromium, or your system's package of it"),
    NO_TENSORFLOW: (
        "TensorFlow",
        "scripts/setup --keras with Python 3.11 to 3.13, on Linux or on macOS with Apple's processors",
    ),
    NO_PREFECT: (
        "Prefect",
        "scripts/test-prefect, which installs it beside our libraries and runs these tests",
    ),
}


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The browser for tests of pages: Playwright's `executable_path`. scripts/test gets it where it can."""
    for name in CHROMIUM:
        if path := shutil.which(name):
            return path
    pytest.skip(NO_CHROMIUM)


def need_tensorflow(allow_module_level: bool = False) -> None:
    """For tests that run Keras. scripts/test installs TensorFlow where there are wheels of it."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip(NO_TENSORFLOW, allow_module_level=allow_module_level)


@pytest.fixture(scope="session")
def tensorflow_is_there() -> None:
    need_tensorflow()


def need_prefect() -> Path:
    """The interpreter of the virtual environment that scripts/test-prefect makes."""
    python = Path(__file__).parent.parent / ".venv/prefect/bin/python"
    if not python.exists():
        pytest.skip(NO_PREFECT)
    return python


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    yield  # pytest's own summary goes first, so that these lines stand at the very end
    skipped = terminalreporter.stats.get("skipped", [])
    for reason, (what, how) in LACKING.items():
        left_out = [report for report in skipped if reason in str(report.longrepr)]
        if left_out:
            files = ", ".join(sorted({report.location[0] for report in left_out}))
            terminalreporter.write_line(
                f"NOT RUN for want of {what}: {len(left_out)} in {files}. To get it: {how}.",
                red=True,
                bold=True,
            )
