"""The demo, run as a stranger runs it."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier

from service.compiler import tflite
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.describe import describe
from tests.service.builds.processes import ends

DEMO = Path(__file__).parents[3] / "scripts" / "demo.py"
ORDER = [sys.executable, DEMO, "--port", "0"]
ENV = {k: v for k, v in os.environ.items() if not k.startswith("TRIVIUM_")} | {"PYTHONUNBUFFERED": "1"}
pytestmark = pytest.mark.slow


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """One that was told to stay."""
    running = subprocess.Popen(ORDER, cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, text=True)
    with running:
        yield running
        running.terminate()


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="children are looked up in /proc")
def test_a_demo_that_is_ended_as_its_server_starts_leaves_none(demo):
    while not (found := children(demo.pid)):
        assert demo.poll() is None
        time.sleep(0.002)  # the signal is to come while that one starts
    demo.terminate()
    assert demo.wait(timeout=60) == 143
    assert ends(found[0])


def once(folder: Path, *more: str) -> str:
    done = subprocess.run(
        [*ORDER, "--once", *more], cwd=folder, env=ENV, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "Try it" not in done.stdout  # nothing is there to be tried
    assert done.stdout.splitlines()[-1].startswith("Stopped")
    return done.stdout


def test_the_demo_goes_all_roads_until_ctrl_c_a_second_run_makes_no_new_model_and_other_answers_fail(
    demo, tmp_path
):
    told = "".join(iter(demo.stdout.readline, "Running    Ctrl-C stops the server\n"))
    assert "Published  breast-cancer version 1 over HTTP: ready" in told
    assert "Runtime    onnx" in told
    assert told.count("143 of 143 labels are scikit-learn's") == 2  # over HTTP, and on LiteRT
    assert "Exported   breast-cancer version 1 as .tflite (none): ready" in told
    assert "100.000% of the labels agree" in told
    assert "to int8: quantization brings nothing here" in told
    assert re.search(r"^Pulled .*: installed version 1 as ", told, re.MULTILINE)
    assert re.search(r"^Scored     1,000,000 rows in \d+ partitions, [\d,]+ rows/s", told, re.MULTILINE)
    assert "each row once and in order; 500 of 500 labels are the online road's" in told
    assert "Scheduled  breast-cancer-weekly: every week, for the first time in 5 s" in told
    assert re.search(
        r"^Ran        job \d+, started by breast-cancer-weekly: accuracy 0\.9", told, re.MULTILINE
    )
    docs = re.search(r"^  (http://127.0.0.1:\d+/docs)$", told, re.MULTILINE)
    assert docs is not None
    assert httpx.get(docs[1]).status_code == 200
    pasted = [
        subprocess.run(["bash", "-euc", line], cwd=tmp_path, env=ENV, check=True, capture_output=True).stdout
        for line in re.findall(r"^  (curl .*)$", told, re.MULTILINE)
    ]
    assert [answer[:15] for answer in pasted] == [
        b'{"predictions":',
        b'{"name":"breast',
        b'{"model":"breas',
        b"",
    ]
    pulled = tmp_path / ".trivium/demo/device/breast-cancer/breast-cancer.tflite"
    assert (tmp_path / "breast-cancer.tflite").read_bytes() == pulled.read_bytes()
    key = tmp_path / ".trivium/demo/device/breast-cancer.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    bearer = {"Authorization": f"Bearer {key.read_text().strip()}"}
    allowed = {"/v1/edge/breast-cancer": 200, "/v1/edge/another": 403, "/v1/keys": 403}
    asked = {path: httpx.get(docs[1].removesuffix("/docs") + path, headers=bearer) for path in allowed}
    assert {path: answer.status_code for path, answer in asked.items()} == allowed

    demo.send_signal(signal.SIGINT)
    demo.send_signal(signal.SIGTERM)  # as `kill` and a closed terminal do; the first one counts
    assert demo.wait(timeout=60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(docs[1])

    told = once(tmp_path)
    assert "Published  already, as version 1" in told
    assert told.count("Exported   already, breast-cancer version 1") == 2
    assert re.search(r"^Pulled .*: version 1 is current$", told, re.MULTILINE)
    assert "Made       already" in told
    assert "Ran        job 4, started by breast-cancer-weekly" in told

    another = RandomForestClassifier(1, max_depth=1, random_state=0)
    another.fit(*load_breast_cancer(return_X_y=True, as_frame=True))
    another.classes_ = np.array(["malignant", "benign"])
    signature = describe(another, None, Corrections()).signature
    pulled.write_bytes(tflite.convert(another, signature))
    failed = subprocess.run([*ORDER, "--once"], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "Failed     the device's answers are not scikit-learn's" in failed.stdout


def test_a_cnn_goes_the_same_ways_and_its_int8_is_a_third_as_large(tmp_path, tensorflow_is_there):
    told = once(tmp_path, "--keras")
    assert "Published  digits version 1 over HTTP: ready" in told
    assert "Runtime    tflite: converted to LiteRT" in told
    assert "500 of 500 labels are Keras' own" in told
    found = re.search(
        r"accuracy (\S+) in float32, (\S+) in int8;\s+(\S+) bytes in float32, (\S+) in int8", told
    )
    before, after = float(found[1]), float(found[2])
    assert before > 0.9
    assert after > before - 0.02
    assert int(found[4].replace(",", "")) < int(found[3].replace(",", "")) / 3 + 1000

    again = once(tmp_path, "--keras")
    assert again.count("Published  already, as version 1") == 2
    assert again.count("Exported   already, digits version 1") == 2
    assert len(re.findall(r"^Pulled .*: version 1 is current$", again, re.MULTILINE)) == 2
