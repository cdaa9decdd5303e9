"""`scripts/edge_pull.py` against a real server, as a separate process with a device's environment."""

from __future__ import annotations

import ast
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from registry import db, exports
from tests.harness.server import Server, serving
from tests.service.edge.test_tuf_repository import Registry

SCRIPT = Path(__file__).parents[2] / "scripts" / "edge_pull.py"
BIG = os.urandom(3_000_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("edge_pull") / "home") as server:
        yield server


@pytest.fixture
def registry(server: Server) -> Iterator[Registry]:
    registry = Registry(server.home)
    registry.export(BIG)
    registry.sign()
    yield registry
    registry.engine.dispose()


class PullingDevice:
    """A device with its own directory, on which the script runs."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.file, self.previous = folder / "m.tflite", folder / "m.previous.tflite"

    def start(self, *options: str, key: str | None = None) -> subprocess.Popen[str]:
        argv = [sys.executable, str(SCRIPT), "--url", self.server.url, "--model", "m"]
        return subprocess.Popen(
            [*argv, "--dir", str(self.folder), "--device", self.folder.name, *options],
            env={"PATH": os.environ["PATH"], "TRIVIUM_API_KEY": key or self.server.key},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pull(self, *options: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
        with self.start("--once", *options, key=key) as process:
            try:
                out, err = process.communicate(timeout=120)
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def reports(self) -> list[dict[str, Any]]:
        """Return this device's reports to the server, newest first."""
        with self.server.client() as client:
            items: list[dict[str, Any]] = client.get("/v1/edge/m/reports").json()["items"]
        return [r for r in items if r["device"] == self.folder.name]


@pytest.fixture
def device(server: Server, registry: Registry, tmp_path: Path) -> PullingDevice:
    return PullingDevice(server, tmp_path / f"device-{tmp_path.name}")


def test_a_file_is_installed_reported_and_not_downloaded_again(device: PullingDevice) -> None:
    first = device.pull()
    assert first.returncode == 0, first.stderr
    assert device.file.read_bytes() == BIG
    assert [(r["status"], r["latency_ms"]) for r in device.reports()] == [("ok", None)]
    again = device.pull()
    assert "is current" in again.stderr
    assert "downloading" not in again.stderr
    assert len(device.reports()) == 1


def test_two_signals_while_the_device_waits_end_it_with_exit_code_0(
    device: PullingDevice,
) -> None:
    assert device.pull().returncode == 0
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


def test_an_interrupted_download_is_resumed(device: PullingDevice) -> None:
    assert device.pull().returncode == 0
    (partial := device.folder / "incoming").mkdir(exist_ok=True)
    sha256 = hashlib.sha256(BIG).hexdigest()
    (partial / f"{sha256}.part").write_bytes(BIG[:2_000_000])
    (device.folder / "state.json").unlink()
    device.file.unlink()
    resumed = device.pull()
    assert "downloading 3000000 bytes, 2000000 are already here" in resumed.stderr
    assert device.file.read_bytes() == BIG


def test_a_damaged_partial_download_is_discarded_and_not_installed(device: PullingDevice) -> None:
    sha256 = hashlib.sha256(BIG).hexdigest()
    (device.folder / "incoming").mkdir(parents=True)
    (device.folder / "incoming" / f"{sha256}.part").write_bytes(bytes(1000))
    damaged = device.pull()
    assert damaged.returncode == 1
    assert "the downloaded file is not the signed one" in damaged.stderr
    assert not device.file.exists()
    assert device.pull().returncode == 0, "the next poll starts from the beginning"
    assert device.file.read_bytes() == BIG


def test_a_version_that_fails_its_self_test_is_removed_and_not_tried_again(
    device: PullingDevice, registry: Registry
) -> None:
    device.pull()
    registry.export(b"broken here")
    failed = device.pull("--self-test", f"{sys.executable} -c 'raise SystemExit(\"no such operator\")'")
    assert failed.returncode == 1
    assert device.file.read_bytes() == BIG
    assert (device.reports()[0]["status"], device.reports()[0]["message"]) == (
        "failed",
        "exit code 1: no such operator",
    )
    assert "failed its self-test here before" in device.pull("--self-test", "true").stderr
    registry.export(b"better")
    assert device.pull("--self-test", "test -s").returncode == 0
    assert (device.file.read_bytes(), device.previous.read_bytes()) == (b"better", BIG)
    assert device.reports()[0]["latency_ms"] > 0


def test_a_self_test_may_print_any_bytes(device: PullingDevice, registry: Registry) -> None:
    device.pull()
    registry.export(b"prints rubbish")
    invalid_utf8_code = "import os; os.write(2, bytes([255, 254])); raise SystemExit(1)"
    assert device.pull("--self-test", f"{sys.executable} -c '{invalid_utf8_code}'").returncode == 1
    assert device.file.read_bytes() == BIG
    assert device.reports()[0]["status"] == "failed"


def test_a_device_with_an_older_runtime_gets_a_file_that_runs_on_it(
    device: PullingDevice, registry: Registry
) -> None:
    number = registry.export(b"runs everywhere")
    blob = registry.store.put([b"needs the newest"])
    with registry.sessions.begin() as session:
        row = exports.create(session, registry.store, "m", number, exports.NewExport(), by="test")
        exports.finish(
            session, row.id, exports.FinishedExport("ready", {}, blob.sha256, blob.bytes, None, "2.9.0")
        )
    registry.sign()
    pulled = device.pull("--runtime-version", "2.5.0")
    assert (pulled.returncode, device.file.read_bytes()) == (0, b"runs everywhere"), pulled.stderr
    assert device.pull("--runtime-version", "2.9.0").returncode == 0
    assert device.file.read_bytes() == b"needs the newest"


def test_the_page_of_a_captive_portal_is_rejected_as_manifest(device: PullingDevice, tmp_path: Path) -> None:
    class Portal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>please log in</html>")

    with HTTPServer(("127.0.0.1", 0), Portal) as portal:
        threading.Thread(target=portal.serve_forever, daemon=True).start()
        pulled = device.pull("--url", f"http://127.0.0.1:{portal.server_port}")
        portal.shutdown()
    assert pulled.returncode == 1
    assert "the response is not a manifest" in pulled.stderr


def test_a_first_version_that_fails_its_self_test_leaves_no_file(device: PullingDevice) -> None:
    assert device.pull("--self-test", "false").returncode == 1
    assert not device.file.exists()


def test_an_update_interrupted_before_its_self_test_is_repeated(
    device: PullingDevice, registry: Registry
) -> None:
    device.pull()
    registry.export(b"the next one")
    killer = f"{sys.executable} -c 'import os, signal; os.kill(os.getppid(), signal.SIGKILL)'"
    assert device.pull("--self-test", killer).returncode == -9
    assert device.file.read_bytes() == b"the next one", "installed, but not tested"
    repeated = device.pull("--self-test", "test -s")
    assert "the previous file is restored" in repeated.stderr
    assert (device.file.read_bytes(), device.previous.read_bytes()) == (b"the next one", BIG)


def test_the_root_option_must_match_the_servers_root(
    device: PullingDevice, tmp_path: Path, registry: Registry
) -> None:
    (own_root := tmp_path / "root.json").write_bytes(registry.first_root())
    assert device.pull("--root", str(own_root)).returncode == 0
    other = Registry(tmp_path / "other")
    db.migrate(other.engine, other.home)
    other.export(b"poison")
    other.sign()
    (other_root := tmp_path / "other.json").write_bytes(other.first_root())
    other.engine.dispose()
    second = PullingDevice(device.server, tmp_path / "device-2")
    failure = second.pull("--root", str(other_root))
    assert failure.returncode == 1
    assert not second.file.exists()


def test_a_refusal_shows_the_servers_message(device: PullingDevice) -> None:
    failure = device.pull("--quantize", "int8")
    assert failure.returncode == 1
    assert "export of m@champion with quantize 'int8'" in failure.stderr
    assert "quantize: not one of the allowed values" in device.pull("--quantize", "int4").stderr
    assert "401" in device.pull(key="trv_nobody_x").stderr


def test_the_script_runs_on_python_3_9_and_imports_two_packages() -> None:
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 9))
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    packages = {str(m).partition(".")[0] for m in modules} - sys.stdlib_module_names
    assert packages == {"httpx", "tuf"}
