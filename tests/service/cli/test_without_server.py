"""The command without a server, and when it is interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess

from tests.harness.server import TRIVIUM


def test_an_unreachable_server_exits_with_3_its_address_and_how_to_start_one(trivium, tmp_path, free_port):
    url = f"http://127.0.0.1:{free_port}"
    result = trivium("models", env={"TRIVIUM_URL": url, "TRIVIUM_HOME": str(tmp_path)})
    assert (result.code, result.out) == (3, "")
    assert url in result.err
    assert "trivium serve" in result.err


def test_an_invalid_address_is_wrong_usage(trivium, tmp_path):
    result = trivium("models", env={"TRIVIUM_URL": "localhost:8080", "TRIVIUM_HOME": str(tmp_path)})
    assert result.code == 2
    assert "localhost:8080" in result.err


def test_calls_to_this_machine_do_not_use_a_proxy(trivium, tmp_path, free_port, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    url = f"http://127.0.0.1:{free_port}"
    assert url in trivium("models", env={"TRIVIUM_URL": url, "TRIVIUM_HOME": str(tmp_path)}).err


def test_an_invalid_setting_is_wrong_usage_and_named(trivium, tmp_path):
    result = trivium("migrate", env={"TRIVIUM_PORT": "eighty", "TRIVIUM_HOME": str(tmp_path)})
    assert result.code == 2
    assert "TRIVIUM_PORT" in result.err


def interrupt(command: subprocess.Popen[str]) -> tuple[str, str]:
    """Send SIGINT until the command ends; return stdout and stderr.

    Python handles a signal that arrives just before a blocking call only after that call, so one may not be
    enough.
    """
    for _ in range(30):
        command.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return command.communicate(timeout=1)
    command.kill()
    raise AssertionError("the command did not end")


def test_an_interrupt_ends_a_command_with_130_and_no_traceback(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts connections and never responds
        env = os.environ | {
            "TRIVIUM_URL": f"http://127.0.0.1:{listener.getsockname()[1]}",
            "TRIVIUM_HOME": str(tmp_path),
        }
        command = subprocess.Popen(
            [TRIVIUM, "models"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        connection, _ = listener.accept()
        with connection:
            connection.recv(1)
            out, err = interrupt(command)
    assert command.returncode == 130
    assert (out, err) == ("", "")
