"""The reference device against a real server: as a process of its own, with what a device has."""

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
    with serving(tmp_path_factory.mktemp("edge_pull") / "home") as running:
        yield running


@pytest.fixture
def registry(server: Server) -> Iterator[Registry]:
    made = Registry(server.home)
    made.export(BIG)
    made.sign()
    yield made
    made.engine.dispose()


class Device:
    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.file, self.previous = folder / "m.tflite", folder / "m.previous.tflite"

    def start(self, *more: str, key: str | None = None) -> subprocess.Popen[str]:
        argv = [sys.executable, str(SCRIPT), "--url", self.server.url, "--model", "m"]
        return subprocess.Popen(
            [*argv, "--dir", str(self.folder), "--device", self.folder.name, *more],
            env={"PATH": os.environ["PATH"], "TRIVIUM_API_KEY": key or self.server.key},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pull(self, *more: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
        with self.start("--once", *more, key=key) as running:
            try:
                out, err = running.communicate(timeout=120)
            finally:
                running.kill()
        return subprocess.CompletedProcess(running.args, running.returncode, out, err)

    def reports(self) -> list[dict[str, Any]]:
        """What the server was told by this device, newest first."""
        with self.server.client() as client:
            items: list[dict[str, Any]] = client.get("/v1/edge/m/reports").json()["items"]
        return [r for r in items if r["device"] == self.folder.name]


@pytest.fixture
def device(server: Server, registry: Registry, tmp_path: Path) -> Device:
    return Device(server, tmp_path / f"device-{tmp_path.name}")


def test_the_file_arrives_whole_is_reported_and_not_fetched_again(device: Device) -> None:
    first = device.pull()
    assert first.returncode == 0, first.stderr
    assert device.file.read_bytes() == BIG
    assert [(r["status"], r["latency_ms"]) for r in device.reports()] == [("ok", None)]
    again = device.pull()
    assert "is current" in again.stderr
    assert "downloading" not in again.stderr
    assert len(device.reports()) == 1


def test_a_device_that_waits_for_its_next_poll_ends_when_told_and_once_when_told_twice(
    device: Device,
) -> None:
    assert device.pull().returncode == 0
    with device.start("--interval", "300") as running:
        try:
            assert running.stderr is not None
            assert "is current" in running.stderr.readline()
            running.send_signal(signal.SIGTERM)
            running.send_signal(signal.SIGINT)
            assert running.wait(timeout=20) == 0
            assert running.stderr.read() == ""
        finally:
            running.kill()


def test_an_interrupted_download_goes_on_where_it_stopped(device: Device) -> None:
    assert device.pull().returncode == 0
    (partial := device.folder / "incoming").mkdir(exist_ok=True)
    sha256 = hashlib.sha256(BIG).hexdigest()
    (partial / f"{sha256}.part").write_bytes(BIG[:2_000_000])
    (device.folder / "state.json").unlink()
    device.file.unlink()
    done = device.pull()
    assert "downloading 3000000 bytes, 2000000 are here already" in done.stderr
    assert device.file.read_bytes() == BIG


def test_a_damaged_part_is_thrown_away_and_nothing_installed(device: Device) -> None:
    sha256 = hashlib.sha256(BIG).hexdigest()
    (device.folder / "incoming").mkdir(parents=True)
    (device.folder / "incoming" / f"{sha256}.part").write_bytes(bytes(1000))
    done = device.pull()
    assert done.returncode == 1
    assert "not what was signed" in done.stderr
    assert not device.file.exists()
    assert device.pull().returncode == 0, "the next poll starts from the beginning"
    assert device.file.read_bytes() == BIG


def test_a_version_that_fails_its_self_test_is_taken_back_and_not_tried_again(
    device: Device, registry: Registry
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


def test_a_self_test_may_print_any_bytes(device: Device, registry: Registry) -> None:
    device.pull()
    registry.export(b"prints rubbish")
    rubbish = "import os; os.write(2, bytes([255, 254])); raise SystemExit(1)"
    assert device.pull("--self-test", f"{sys.executable} -c '{rubbish}'").returncode == 1
    assert device.file.read_bytes() == BIG
    assert device.reports()[0]["status"] == "failed"


def test_a_device_with_an_older_runtime_gets_the_file_that_runs_there(
    device: Device, registry: Registry
) -> None:
    number = registry.export(b"runs everywhere")
    blob = registry.store.put([b"needs the newest"])
    with registry.sessions.begin() as session:
        row = exports.create(session, registry.store, "m", number, exports.NewExport(), by="test")
        exports.finish(
            session, row.id, exports.FinishedExport("ready", {}, blob.sha256, blob.bytes, None, "2.9.0")
        )
    registry.sign()
    done = device.pull("--runtime-version", "2.5.0")
    assert (done.returncode, device.file.read_bytes()) == (0, b"runs everywhere"), done.stderr
    assert device.pull("--runtime-version", "2.9.0").returncode == 0
    assert device.file.read_bytes() == b"needs the newest"


def test_a_page_of_a_portal_is_no_manifest(device: Device, tmp_path: Path) -> None:
    class Portal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>please log in</html>")

    with HTTPServer(("127.0.0.1", 0), Portal) as portal:
        threading.Thread(target=portal.serve_forever, daemon=True).start()
        done = device.pull("--url", f"http://127.0.0.1:{portal.server_port}")
        portal.shutdown()
    assert done.returncode == 1
    assert "the answer is no manifest" in done.stderr


def test_a_first_version_that_fails_leaves_no_file(device: Device) -> None:
    assert device.pull("--self-test", "false").returncode == 1
    assert not device.file.exists()


def test_an_update_that_was_cut_off_before_its_self_test_is_done_again(
    device: Device, registry: Registry
) -> None:
    device.pull()
    registry.export(b"the next one")
    killer = f"{sys.executable} -c 'import os, signal; os.kill(os.getppid(), signal.SIGKILL)'"
    assert device.pull("--self-test", killer).returncode == -9
    assert device.file.read_bytes() == b"the next one", "in place, and not tried"
    done = device.pull("--self-test", "test -s")
    assert "put back" in done.stderr
    assert (device.file.read_bytes(), device.previous.read_bytes()) == (b"the next one", BIG)


def test_a_given_root_must_be_the_servers(device: Device, tmp_path: Path, registry: Registry) -> None:
    (mine := tmp_path / "root.json").write_bytes(registry.first_root())
    assert device.pull("--root", str(mine)).returncode == 0
    stranger = Registry(tmp_path / "stranger")
    db.migrate(stranger.engine, stranger.home)
    stranger.export(b"poison")
    stranger.sign()
    (theirs := tmp_path / "other.json").write_bytes(stranger.first_root())
    stranger.engine.dispose()
    other = Device(device.server, tmp_path / "device-2")
    refused = other.pull("--root", str(theirs))
    assert refused.returncode == 1
    assert not other.file.exists()


def test_a_refusal_is_told_in_the_servers_words(device: Device) -> None:
    done = device.pull("--quantize", "int8")
    assert (done.returncode, "export of m@champion with quantize 'int8'" in done.stderr) == (1, True)
    assert "401" in device.pull(key="trv_nobody_x").stderr


def test_the_script_is_written_for_python_3_9_and_needs_two_packages() -> None:
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 9))
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    packages = {str(m).partition(".")[0] for m in modules} - sys.stdlib_module_names
    assert packages == {"httpx", "tuf"}
