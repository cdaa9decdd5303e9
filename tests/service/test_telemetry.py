"""Logging, in a separate process: its configuration is global to a process."""

from __future__ import annotations

import json
import subprocess
import sys

FAULT = """
from service.telemetry import configure_logging, logger
configure_logging()
def answer(authorization):
    return 1 / 0
try:
    answer("Bearer " + "abc" * 2)
except ZeroDivisionError:
    logger("here").exception("request.failed")
"""


def test_a_logged_error_has_its_traceback_and_no_local_variables() -> None:
    log = subprocess.run([sys.executable, "-c", FAULT], check=True, capture_output=True, text=True).stderr
    assert "abcabc" not in log
    line = json.loads(log)
    assert line["exception"][0]["exc_type"] == "ZeroDivisionError"
    assert line["exception"][0]["frames"][-1]["name"] == "answer"
