"""What is logged, by a process of its own: logging is the whole process's."""

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


def test_a_logged_fault_says_where_it_was_and_tells_no_secret_of_the_call() -> None:
    told = subprocess.run([sys.executable, "-c", FAULT], check=True, capture_output=True, text=True).stderr
    assert "abcabc" not in told
    line = json.loads(told)
    assert line["exception"][0]["exc_type"] == "ZeroDivisionError"
    assert line["exception"][0]["frames"][-1]["name"] == "answer"
