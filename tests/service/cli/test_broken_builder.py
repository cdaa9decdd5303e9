"""The command with a server that cannot build: a module that its build template needs does not import."""

from __future__ import annotations

import time

import pytest

from service.client import Client, Unreachable, builder_watch
from tests.service.cli.conftest import CommandServer

IMPORT_ERROR = "No module named 'no_such_module'"


@pytest.fixture(scope="module")
def broken_server(tmp_path_factory):
    """A server that has noticed that its builder does not work."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "joblib.py").write_text("import no_such_module\n")
    with CommandServer(folder, environment={"PYTHONPATH": str(folder)}) as server:
        server.launch()
        with Client(server.url, None, timeout_s=5.0) as client:
            deadline, has_build = time.monotonic() + 60, False
            while time.monotonic() < deadline and server.process.poll() is None:
                try:
                    if client.readiness()["builder"] != "ok":
                        break
                    if not has_build:
                        body = {"artifact": server.upload(b"no model"), "format": "sklearn-joblib"}
                        server.call_json("POST", "/v1/models/first/versions", body)  # starts the builder
                        has_build = True
                except Unreachable:
                    continue  # the client itself waits before it raises
        yield server
        assert server.terminate() in (0, 143, -15)


def test_doctor_names_the_failing_check_and_the_reason(trivium, broken_server):
    result = trivium("doctor", env=broken_server.env)
    assert result.code == 1
    assert "builder: the build template ended with exit code 1" in result.out
    assert IMPORT_ERROR in result.out


def test_a_publish_reports_the_broken_builder_once_and_stops_waiting(
    trivium, broken_server, files, monkeypatch
):
    monkeypatch.setattr(builder_watch, "CHECK_INTERVAL_S", 0.1)
    monkeypatch.setattr(builder_watch, "MAX_BROKEN_S", 1.0)
    result = trivium("publish", files.model, "--name", "stuck", env=broken_server.env)
    assert result.code == 1
    lines = [line for line in result.err.splitlines() if IMPORT_ERROR in line]
    assert [line.startswith("error: ") for line in lines] == [False, True]
    assert "stays in the queue" in result.err
