"""What every test may ask for, and what the run says at its end about tests that could not be run."""

from __future__ import annotations

import shutil

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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    left_out = [
        report for report in terminalreporter.stats.get("skipped", []) if NO_CHROMIUM in str(report.longrepr)
    ]
    if left_out:
        files = ", ".join(sorted({report.location[0] for report in left_out}))
        terminalreporter.write_line(
            f"NOT RUN: {len(left_out)} tests in {files}, because there is no Chromium. "
            "To run them: apt-get install chromium (or another system's package of it), then scripts/test.",
            red=True,
            bold=True,
        )
