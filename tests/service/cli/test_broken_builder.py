"""What the command says of a server that cannot build: a module its template needs does not import."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from service.client import Client, Unreachable, builder_watch
from tests.service.cli.conftest import TRIVIUM, Server, url_of

WHY = "No module named 'no_such_module'"


@pytest.fixture(scope="module")
def unable(tmp_path_factory):
    """A server whose builder is known to be broken."""
    folder = tmp_path_factory.mktemp("unable")
    (folder / "joblib.py").write_text("import no_such_module\n")
    home, log = folder / "home", folder / "log"
    env = os.environ | {"TRIVIUM_HOME": str(home), "PYTHONPATH": str(folder)}
    with log.open("wb") as out:
        child = subprocess.Popen([TRIVIUM, "serve", "--port", "0"], env=env, stderr=out)
    try:
        url = url_of(log, child)
        with Client(url, None, timeout_s=5.0) as client:
            given_up = time.monotonic() + 60
            while time.monotonic() < given_up and child.poll() is None:
                try:
                    if client.readiness()["builder"] != "ok":
                        break
                except Unreachable:
                    continue  # a client waits a moment by itself before it gives up
        yield Server(url, home, (home / "admin.key").read_text().strip())
    finally:
        child.terminate()
        assert child.wait(60) in (0, 143, -15)


def test_doctor_says_which_check_fails_and_why(trivium, unable):
    ran = trivium("doctor", env=unable.env)
    assert ran.code == 1
    assert "builder: the build template ended with exit code 1" in ran.out
    assert WHY in ran.out


def test_a_publish_says_once_that_nothing_is_built_and_does_not_wait_for_ever(
    trivium, unable, files, monkeypatch
):
    monkeypatch.setattr(builder_watch, "CHECK_INTERVAL_S", 0.1)
    monkeypatch.setattr(builder_watch, "MAX_BROKEN_S", 1.0)
    ran = trivium("publish", files.model, "--name", "stuck", env=unable.env)
    assert ran.code == 1
    said = [line for line in ran.err.splitlines() if WHY in line]
    assert [line.startswith("error: ") for line in said] == [False, True]
    assert "stays in the queue" in ran.err
