"""What every test may ask for, and what the run says at its end about tests that could not be run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
NO_CHROMIUM = "needs Chromium, which is not on PATH"


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The browser for tests of pages: Playwright's `executable_path`. scripts/test gets it where it can."""
    for name in CHROMIUM:
        if path := shutil.which(name):
            return path
    pytest.skip(NO_CHROMIUM)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    yield  # pytest's own summary goes first, so that this line stands at the very end
    left_out = [
        report for report in terminalreporter.stats.get("skipped", []) if NO_CHROMIUM in str(report.longrepr)
    ]
    if left_out:
        files = ", ".join(sorted({report.location[0] for report in left_out}))
        terminalreporter.write_line(
            f"NOT RUN for want of Chromium: {len(left_out)} in {files}. "
            "To get it: apt-get install chromium, or your system's package of it.",
            red=True,
            bold=True,
        )
