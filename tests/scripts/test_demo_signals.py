"""What a demo makes of signals: it is ended by one, and by the first of several that come together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
HEAD = "import os, signal, time; from demo_steps import signals; signals.take(); me = os.getpid()\n"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("os.kill(me, signal.SIGTERM); time.sleep(60)", 143),
        ("with signals.held(): os.kill(me, signal.SIGINT); print('whole', flush=True)", 130),
        # the second comes at once, while what the first one began takes longer than `AGAIN_S`
        (
            "try: os.kill(me, signal.SIGINT); time.sleep(60)\n"
            "except SystemExit:\n"
            "    with signals.held(): os.kill(me, signal.SIGTERM); time.sleep(signals.AGAIN_S + 0.1)",
            0,
        ),
    ],
    ids=["one", "one in a block that is whole", "two together"],
)
def test_the_first_signal_counts_and_none_is_lost(code: str, status: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", HEAD + code], cwd=SCRIPTS, capture_output=True, text=True, timeout=30
    )
    assert (ran.returncode, ran.stderr) == (status, "")
    assert ran.stdout == ("whole\n" if "whole" in code else "")
