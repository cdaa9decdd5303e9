"""ONNX Runtime's telemetry is off: its thread is not started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

THREADS = """
import os, sys, time
{}
time.sleep(0.2)
print([open(f"/proc/self/task/{{t}}/comm").read().strip() for t in os.listdir("/proc/self/task")])
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_onnx_runtime_starts_no_thread_of_its_own_when_the_server_imports_it() -> None:
    environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", THREADS.format(imports)],
            env=environment | extra,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for imports, extra in (
            ("import numpy", {}),
            ("import service.runtime.onnx_runtime", {}),
            ("import onnxruntime", {"ORT_DISABLE_TELEMETRY": "0"}),
        )
    ]
    assert outputs[0].count(",") == outputs[1].count(",") == 0
    assert outputs[2].count(",") > 0, "without the setting there is a thread, so this test can fail"
