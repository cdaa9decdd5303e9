"""The demo, run as a stranger runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

DEMO = Path(__file__).parents[3] / "scripts" / "demo.py"
pytestmark = pytest.mark.slow


def test_the_demo_serves_until_ctrl_c_and_a_second_run_publishes_nothing_new(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRIVIUM_")} | {"PYTHONUNBUFFERED": "1"}
    order = [sys.executable, DEMO, "--port", "0"]
    running = subprocess.Popen(order, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    first = []
    for line in running.stdout:
        first.append(line)
        if line.startswith("Running"):
            break
    told = "".join(first)
    assert "Published  breast-cancer version 1 over HTTP: ready" in told
    assert "Runtime    onnx" in told
    assert "143 of 143 labels are scikit-learn's" in told
    docs = re.search(r"^  (http://127.0.0.1:\d+/docs)$", told, re.MULTILINE)
    assert docs is not None
    assert httpx.get(docs[1]).status_code == 200

    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(docs[1])

    again = subprocess.run(
        [*order, "--once"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 0, again.stderr
    assert "Published  already, as version 1" in again.stdout
    assert again.stdout.splitlines()[-1].startswith("Stopped")
