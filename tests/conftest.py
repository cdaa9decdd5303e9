"""Fixtures for all tests, and a summary of the tests that were skipped for a missing program."""

from __future__ import annotations

import gc
import importlib.util
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.registry.postgres import postgres, reused_databases

__all__ = ["postgres", "reused_databases"]  # fixtures

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs the tests in the background ignores SIGINT, and child processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NO_CHROMIUM = "requires Chromium, which is not on PATH"
NO_TENSORFLOW = "requires TensorFlow, which is not installed"
NO_PREFECT = "requires Prefect, which is not in .venv/prefect"
NO_CLIENTS = "requires clients of the Open Inference Protocol, which are not in .venv/clients"


class MissingProgram(NamedTuple):
    name: str
    remedy: str


MISSING_PROGRAMS = {
    NO_CHROMIUM: MissingProgram("Chromium", "apt-get install chromium, or the package of your system"),
    NO_TENSORFLOW: MissingProgram(
        "TensorFlow",
        "scripts/setup --keras with Python 3.11 to 3.13, on Linux or on macOS with Apple silicon",
    ),
    NO_PREFECT: MissingProgram("Prefect", "scripts/test-prefect, which installs it and runs these tests"),
    NO_CLIENTS: MissingProgram(
        "tritonclient, kserve and MLServer", "scripts/test-clients, which installs them and runs these tests"
    ),
}
"""Programs that tests require, by the reason of the skip."""


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The browser for tests of pages, Playwright's `executable_path`. scripts/test installs one on Debian."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    pytest.skip(NO_CHROMIUM)


def require_tensorflow(allow_module_level: bool = False) -> None:
    """Skip the test, or the module, without TensorFlow. scripts/test installs it where it has wheels."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip(NO_TENSORFLOW, allow_module_level=allow_module_level)


@pytest.fixture(scope="session")
def requires_tensorflow() -> None:
    require_tensorflow()


def require_prefect() -> Path:
    """Return the Python of the environment that scripts/test-prefect creates; skip the test without it."""
    python = Path(__file__).parent.parent / ".venv/prefect/bin/python"
    if not python.exists():
        pytest.skip(NO_PREFECT)
    return python


def require_client(name: str) -> Path:
    """Return the Python of an environment that scripts/test-clients creates; skip the test without it."""
    python = Path(__file__).parent.parent / f".venv/clients/{name}/bin/python"
    if not python.exists():
        pytest.skip(NO_CLIENTS)
    return python


def pytest_collection() -> None:
    """Collect no garbage during imports, which create little: it costs half of the time of the collection."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Exempt what imports created from garbage collection: TensorFlow's converter starts complete ones."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    yield  # these lines come after pytest's own summary, at the very end
    skipped = terminalreporter.stats.get("skipped", [])
    for reason, (name, remedy) in MISSING_PROGRAMS.items():
        reports = [report for report in skipped if reason in str(report.longrepr)]
        if reports:
            files = ", ".join(sorted({report.location[0] for report in reports}))
            terminalreporter.write_line(
                f"NOT RUN without {name}: {len(reports)} in {files}. To install it: {remedy}.",
                red=True,
                bold=True,
            )
