"""The README's tour is run as it stands, block by block, against a server of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ADDRESS = "http://127.0.0.1:8080"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)

MANIFEST = re.findall(r"^```json\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[1]


@pytest.fixture
def tour(tmp_path: Path):
    """A directory that looks like the repository to the README, with a server running in it."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRIVIUM_")}
    environment["TRIVIUM_BATCH_ROOTS"] = str(tmp_path)
    log = tmp_path / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [Path(sys.prefix) / "bin" / "trivium", "serve", "--port", "0"],
            cwd=tmp_path,
            env=environment,
            stderr=out,
        )
    try:
        url = _await_url(server, log)
        yield tmp_path, environment | {"TRIVIUM_URL": url}, url
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def _await_url(server: subprocess.Popen[bytes], log: Path) -> str:
    given_up = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < given_up:
        if "Application startup complete" in (text := log.read_text()):
            return re.search(r'"url": "(http://127\.0\.0\.1:\d+)"', text)[1]
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def test_every_block_of_the_tour_does_what_it_says(tour) -> None:
    directory, environment, url = tour
    if shutil.which("curl", path=environment["PATH"]) is None:
        pytest.fail("the README's tour needs curl; install it to run this test")
    printed = []
    for block in BLOCKS:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.replace(ADDRESS, url)],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    publish, predict, csv, versions, keys, export, manifest, device, batch, job, weekly, trained = printed
    assert "iris:1 is ready on onnx" in publish
    assert predict.startswith('{"predictions":[{"label":"setosa"')
    assert csv.splitlines()[0].startswith("label,probability.setosa")
    assert "iris:2 is ready on onnx" in versions
    assert "more data" in versions  # the history
    assert "aliases: champion" in versions  # iris:1 is it again, after the rollback
    assert "scoring service" in keys
    assert export.startswith("iris:1 as .tflite (none) is ready")
    offered, described = json.loads(manifest), json.loads(MANIFEST)
    assert offered.keys() == described.keys()
    assert offered["report"].keys() >= described["report"].keys()
    assert (offered["version"], offered["report"]["label_agreement"]) == (1, 1.0)
    assert (directory / ".trivium/device/iris.tflite").stat().st_size == offered["bytes"]
    assert json.loads(device)["predictions"][0]["label"] == "setosa"
    assert batch.startswith("150 rows scored with iris:1 (")
    scores = (directory / "iris.scores.csv").read_text().splitlines()
    assert (len(scores), scores[1]) == (151, '"setosa","setosa",1,0,0')
    assert len(job.splitlines()) == 151
    assert '"state":"done"' in (directory / "iris.events.txt").read_text().splitlines()[-2]
    assert weekly.startswith("iris-weekly: runs every 1w, next at ")
    assert trained.startswith("iris-trained:1 was trained on 120 rows in 1 partition; on 30 rows held out: ")


def test_the_tour_has_its_blocks() -> None:
    assert len(BLOCKS) == 12
