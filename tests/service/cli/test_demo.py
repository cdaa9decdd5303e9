"""`scripts/demo`, run as a user runs it. The tests share the files of one demo: each run takes seconds."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.service.builds.processes import wait_for_end

DEMO = Path(__file__).parents[3] / "scripts" / "demo.py"
COMMAND = [sys.executable, str(DEMO), "--port", "0"]
ENV = {k: v for k, v in os.environ.items() if not k.startswith("TRIVIUM_")} | {"PYTHONUNBUFFERED": "1"}
KERAS = ["--keras"] if importlib.util.find_spec("tensorflow") else []
RUNNING = "Running    Ctrl-C stops the server\n"
pytestmark = pytest.mark.slow


class Demo(NamedTuple):
    """A demo in `folder`, whose server runs, and the output of its steps."""

    folder: Path
    process: subprocess.Popen[str]
    output: str

    @property
    def url(self) -> str:
        """The address of the server."""
        address = re.search(r"^  (http://127.0.0.1:\d+)/docs$", self.output, re.MULTILINE)
        assert address is not None, self.output
        return address[1]


def start_demo(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start a demo without `--once`, whose server keeps running."""
    command = [*COMMAND, *options]
    return subprocess.Popen(command, cwd=folder, env=ENV, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("demo")
    with start_demo(folder, *KERAS) as process:
        assert process.stdout is not None
        yield Demo(folder, process, "".join(iter(process.stdout.readline, RUNNING)))
        process.terminate()


@pytest.fixture(scope="module")
def run_with_wrong_device(running: Demo) -> subprocess.CompletedProcess[str]:
    """A run whose device answers wrongly, on the server of the demo.

    A device replaces a damaged file, so a program that runs another one stands in for it.
    """
    program = textwrap.dedent(
        """
        import contextlib
        import sys

        url, *sys.path[:0] = sys.argv[1:]
        import demo
        from demo_steps import HOME, edge
        from service.client import Client

        run_on_device = edge.run_on_device

        def run_wrongly(client, name, quantize, rows):
            run = run_on_device(client, name, quantize, rows)
            first = run.predictions[0]
            first["label"] = next(c for c in first["probabilities"] if c != first["label"])
            return run

        @contextlib.contextmanager
        def connected(port):
            with Client(url, (HOME / "admin.key").read_text().strip()) as client:
                yield client, None

        edge.run_on_device, demo.serving = run_wrongly, connected
        sys.argv = ["demo.py", "--port", "0", "--once"]
        sys.exit(demo.main())
        """
    )
    command = [sys.executable, "-c", program, running.url, str(DEMO.parent)]
    return subprocess.run(command, cwd=running.folder, env=ENV, capture_output=True, text=True)


@pytest.fixture(scope="module")
def stopped(running: Demo, run_with_wrong_device: subprocess.CompletedProcess[str]) -> Demo:
    """The demo after ctrl-C, with its files. Its server is no longer required."""
    running.process.send_signal(signal.SIGINT)
    running.process.send_signal(signal.SIGTERM)  # a second signal, as a closed terminal sends it, is ignored
    running.process.wait(timeout=60)
    return running


@pytest.fixture(scope="module")
def second_output(stopped: Demo) -> str:
    """The output of a second run with `--once`, with the models of the first."""
    process = subprocess.run(
        [*COMMAND, "--once", *KERAS], cwd=stopped.folder, env=ENV, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stderr == ""
    return process.stdout


def child_pids(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads child processes from /proc")
def test_a_demo_that_ends_during_the_servers_start_leaves_no_server(tmp_path: Path) -> None:
    with start_demo(tmp_path) as demo:
        while not (pids := child_pids(demo.pid)):
            assert demo.poll() is None
            time.sleep(0.002)  # the signal must arrive while the server starts
        try:
            demo.terminate()
            assert demo.wait(timeout=60) == 143
            assert wait_for_end(pids[0])
        finally:
            demo.kill()  # otherwise a demo that ignores the signal would block the whole run


def test_the_demo_fails_when_the_device_answers_differently(
    run_with_wrong_device: subprocess.CompletedProcess[str],
) -> None:
    failed = run_with_wrong_device
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "Failed     the device's answers differ from scikit-learn's" in failed.stdout


def test_the_commands_that_the_demo_prints_work_until_ctrl_c(
    running: Demo, request: pytest.FixtureRequest
) -> None:
    output, folder = running.output, running.folder
    assert "Published  breast-cancer version 1 over HTTP: ready" in output
    assert "Runtime    onnx" in output
    assert output.count("143 of 143 labels equal scikit-learn's") == 2  # over HTTP, and on LiteRT
    assert "Exported   breast-cancer version 1 as .tflite (none): ready" in output
    assert "100.000% of the labels agree" in output
    assert "to int8: quantization gains nothing" in output
    assert re.search(r"^Pulled .*: installed version 1 as ", output, re.MULTILINE)
    assert re.search(r"^Scored     1,000,000 rows in \d+ partitions, [\d,]+ rows/s", output, re.MULTILINE)
    assert "each row once and in order; 500 of 500 labels equal the online predictions" in output
    assert "Scheduled  breast-cancer-weekly: every week, for the first time in 1 s" in output
    assert re.search(
        r"^Ran        job \d+, started by breast-cancer-weekly: accuracy 0\.9", output, re.MULTILINE
    )
    assert httpx.get(f"{running.url}/docs").status_code == 200
    answers = [
        subprocess.run(["bash", "-euc", line], cwd=folder, env=ENV, check=True, capture_output=True).stdout
        for line in re.findall(r"^  (curl .*)$", output, re.MULTILINE)
    ]
    assert [answer[:15] for answer in answers] == [
        b'{"predictions":',
        b'{"name":"breast',
        b'{"model":"breas',
        b"",
    ]
    pulled = folder / ".trivium/demo/device/breast-cancer/breast-cancer.tflite"
    assert (folder / "breast-cancer.tflite").read_bytes() == pulled.read_bytes()
    key = folder / ".trivium/demo/device/breast-cancer.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    bearer = {"Authorization": f"Bearer {key.read_text().strip()}"}
    allowed = {"/v1/edge/breast-cancer": 200, "/v1/edge/another": 403, "/v1/keys": 403}
    responses = {path: httpx.get(running.url + path, headers=bearer) for path in allowed}
    assert {path: response.status_code for path, response in responses.items()} == allowed

    request.getfixturevalue("stopped")
    assert running.process.returncode == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(running.url)


def test_a_second_demo_reuses_the_models_and_files_of_the_first(second_output: str) -> None:
    assert "Commands to try" not in second_output  # their server has ended
    assert second_output.splitlines()[-1].startswith("Stopped")
    assert "Published  already, as version 1" in second_output
    assert second_output.count("Exported   already, breast-cancer version 1") == 2
    assert re.search(r"^Pulled .*breast-cancer.*: version 1 is current$", second_output, re.MULTILINE)
    assert "Created    already" in second_output
    assert "Ran        job 4, started by breast-cancer-weekly" in second_output


def test_a_cnn_is_served_and_exported_and_its_int8_file_is_a_third_as_large(
    requires_tensorflow: None, stopped: Demo, second_output: str
) -> None:
    output = stopped.output
    assert "Published  digits version 1 over HTTP: ready" in output
    assert "Runtime    tflite: converted to LiteRT" in output
    assert "500 of 500 labels equal those of Keras" in output
    figures = re.search(
        r"accuracy (\S+) in float32, (\S+) in int8;\s+(\S+) bytes in float32, (\S+) in int8", output
    )
    assert figures is not None
    before, after = float(figures[1]), float(figures[2])
    assert before > 0.9
    assert after > before - 0.02
    assert int(figures[4].replace(",", "")) < int(figures[3].replace(",", "")) / 3 + 1000

    assert second_output.count("Published  already, as version 1") == 2
    assert second_output.count("Exported   already, digits version 1") == 2
    assert len(re.findall(r"^Pulled .*: version 1 is current$", second_output, re.MULTILINE)) == 2
