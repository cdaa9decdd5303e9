"""Signals end the demo; of several signals at once, the first one counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
HEAD = (
    "import os, signal, time; from demo_steps import signals; signals.install_handlers(); me = os.getpid()\n"
)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("os.kill(me, signal.SIGTERM); time.sleep(60)", 143),
        ("with signals.deferred_signals(): os.kill(me, signal.SIGINT); print('complete', flush=True)", 130),
        # the second signal arrives at once, and the block lasts longer than `REPEAT_S`
        (
            "try: os.kill(me, signal.SIGINT); time.sleep(60)\n"
            "except SystemExit:\n"
            "    with signals.deferred_signals():\n"
            "        os.kill(me, signal.SIGTERM); time.sleep(signals.REPEAT_S + 0.1)",
            0,
        ),
    ],
    ids=["one signal", "one signal in a deferring block", "two signals at once"],
)
def test_the_first_signal_ends_the_demo_and_no_signal_is_lost(code: str, status: int) -> None:
    process = subprocess.run(
        [sys.executable, "-c", HEAD + code], cwd=SCRIPTS, capture_output=True, text=True, timeout=30
    )
    assert (process.returncode, process.stderr) == (status, "")
    assert process.stdout == ("complete\n" if "complete" in code else "")


def test_a_signal_whose_exception_python_discards_ends_the_demo_at_its_next_check() -> None:
    code = (
        "class Closing:\n"
        "    def __del__(self): os.kill(me, signal.SIGTERM); time.sleep(0.01)\n"
        "Closing()\n"
        "print('still running', flush=True)\n"
        "signals.check_stopped()\n"
        "print('not reached')\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", HEAD + code], cwd=SCRIPTS, capture_output=True, text=True, timeout=30
    )
    assert (process.returncode, process.stdout) == (143, "still running\n")
    assert "Exception ignored" in process.stderr
