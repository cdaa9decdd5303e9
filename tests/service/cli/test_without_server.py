"""The command when there is no server to talk to, or when somebody interrupts it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess

from tests.service.cli.conftest import TRIVIUM


def test_a_server_that_is_not_there_is_exit_code_3_with_its_address_and_how_to_start_it(
    trivium, tmp_path, free_port
):
    url = f"http://127.0.0.1:{free_port}"
    ran = trivium("models", env={"TRIVIUM_URL": url, "TRIVIUM_HOME": str(tmp_path)})
    assert (ran.code, ran.out) == (3, "")
    assert url in ran.err
    assert "trivium serve" in ran.err


def test_an_address_that_is_none_is_wrong_usage(trivium, tmp_path):
    ran = trivium("models", env={"TRIVIUM_URL": "localhost:8080", "TRIVIUM_HOME": str(tmp_path)})
    assert ran.code == 2
    assert "localhost:8080" in ran.err


def test_a_proxy_in_the_environment_is_not_asked_for_this_machine(trivium, tmp_path, free_port, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    url = f"http://127.0.0.1:{free_port}"
    assert url in trivium("models", env={"TRIVIUM_URL": url, "TRIVIUM_HOME": str(tmp_path)}).err


def test_a_setting_that_is_none_is_wrong_usage_and_named(trivium, tmp_path):
    ran = trivium("migrate", env={"TRIVIUM_PORT": "eighty", "TRIVIUM_HOME": str(tmp_path)})
    assert ran.code == 2
    assert "TRIVIUM_PORT" in ran.err


def interrupted(command: subprocess.Popen[str]) -> tuple[str, str]:
    """What it said. Of a signal that comes just before it waits for an answer, Python knows only after the
    wait: it is sent again, as a person would press the keys again."""
    for _ in range(30):
        command.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return command.communicate(timeout=1)
    command.kill()
    raise AssertionError("it does not end")


def test_an_interrupt_ends_a_command_with_130_and_no_traceback(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the call and never answers
        env = os.environ | {
            "TRIVIUM_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "TRIVIUM_HOME": str(tmp_path),
        }
        command = subprocess.Popen(
            [TRIVIUM, "models"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        connection, _ = silent.accept()
        with connection:
            connection.recv(1)
            out, err = interrupted(command)
    assert command.returncode == 130
    assert (out, err) == ("", "")
