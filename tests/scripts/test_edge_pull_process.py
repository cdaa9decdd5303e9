"""`scripts/edge_pull.py` as a separate process with a device's environment: output and signals."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.server import Server
from tests.scripts.conftest import BIG, Device, ServedRegistry

SCRIPT = Path(__file__).parents[2] / "scripts" / "edge_pull.py"


class PullingDevice(Device):
    """A device on which the script runs in its own process."""

    def start(self, *options: str) -> subprocess.Popen[str]:
        argv = [sys.executable, str(SCRIPT), "--url", self.server.url, "--model", "m"]
        return subprocess.Popen(
            [*argv, "--dir", str(self.folder), "--device", self.folder.name, *options],
            env={"PATH": os.environ["PATH"], "TRIVIUM_API_KEY": self.server.key},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pull(self, *options: str) -> subprocess.CompletedProcess[str]:
        with self.start("--once", *options) as process:
            try:
                out, err = process.communicate(timeout=120)
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def device(server: Server, registry: ServedRegistry, tmp_path: Path) -> Iterator[PullingDevice]:
    device = PullingDevice(server, tmp_path / f"device-{tmp_path.name}")
    yield device
    device.close()


def test_a_file_is_installed_reported_and_not_downloaded_again(device: PullingDevice) -> None:
    first = device.pull()
    assert first.returncode == 0, first.stderr
    assert device.file.read_bytes() == BIG
    assert [(r["status"], r["latency_ms"]) for r in device.reports()] == [("ok", None)]
    again = device.pull()
    assert "is current" in again.stderr
    assert "downloading" not in again.stderr
    assert len(device.reports()) == 1


def test_two_signals_while_the_device_waits_end_it_with_exit_code_0(device: PullingDevice) -> None:
    assert device.poll()
    with device.start("--interval", "300") as process:
        try:
            assert process.stderr is not None
            assert "is current" in process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_an_update_interrupted_before_its_self_test_is_repeated(
    device: PullingDevice, registry: ServedRegistry
) -> None:
    assert device.poll()
    registry.provide(b"the next one")
    killer = f"{sys.executable} -c 'import os, signal; os.kill(os.getppid(), signal.SIGKILL)'"
    assert device.pull("--self-test", killer).returncode == -9
    assert device.file.read_bytes() == b"the next one", "installed, but not tested"
    repeated = device.pull("--self-test", "test -s")
    assert "the previous file is restored" in repeated.stderr
    assert (device.file.read_bytes(), device.previous.read_bytes()) == (b"the next one", BIG)


def test_a_refusal_shows_the_servers_message(device: PullingDevice) -> None:
    failure = device.pull("--quantize", "int8")
    assert failure.returncode == 1
    assert "export of m@champion with quantize 'int8'" in failure.stderr


def test_the_script_runs_on_python_3_9_and_imports_two_packages() -> None:
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 9))
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    packages = {str(m).partition(".")[0] for m in modules} - sys.stdlib_module_names
    assert packages == {"httpx", "tuf"}
